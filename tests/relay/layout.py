"""A tor of Debian's own layout below a prefix: the package's defaults file and torrc, tor's own user, its control
socket with a cookie. What differs from the package: the prefix in front of each path, and a SOCKS port that
tor chooses."""

from __future__ import annotations

import os
import pwd
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.tor import Tor
from bento_tor.errors import TorError
from bento_tor.network import Network

USER = "debian-tor"
DEFAULTS = Path("/usr/share/tor/tor-service-defaults-torrc")
TORRC = Path("/etc/tor/torrc")
_PATH = re.compile(r"(?<![\w/])/(?=(?:var|run|etc)/)")
# A relay of a private network, all of which is at 127.0.0.1.
TESTING = ("Address 127.0.0.1", "AssumeReachable 1", "ServerDNSDetectHijacking 0", "ServerDNSResolvConfFile /dev/null")


# A network whose only authority is a closed port of this machine: its tor has nobody to talk to.
NOBODY = (
    "TestingTorNetwork 1",
    f"DirAuthority nobody orport=1 no-v2 v3ident={'A' * 40} 127.0.0.1:1 {'B' * 40}",
    "Address 127.0.0.1",
    "AddressDisableIPv6 1",
    "ShutdownWaitLength 0",
)


class DebianTor:
    """The layout in `root`, and its tor; without a network it is alone."""

    def __init__(self, root: Path, *lines: str, network: Network | None = None, instance: str = "") -> None:
        self.root = root
        self.instance = instance
        root.chmod(0o755)
        self._paths(root, instance)
        owner = pwd.getpwnam(USER)
        for path in (self.data, self.run):
            path.mkdir(parents=True)
            path.chmod(0o2700 if path is self.data else 0o2755)
            if os.geteuid() == 0:
                os.chown(path, owner.pw_uid, owner.pw_gid)
        for path in (self.defaults, self.torrc):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.defaults.write_text(self._defaults())
        extra = [*self._network_lines(network), *lines] if network else [*NOBODY, *lines]
        self.torrc.write_text(TORRC.read_text() + "\n".join(["", *extra, ""]))
        self.process: subprocess.Popen[bytes] | None = None

    def _paths(self, root: Path, instance: str) -> None:
        if instance:
            self.data, self.run = root / f"var/lib/tor-instances/{instance}", root / f"run/tor-instances/{instance}"
            self.defaults = root / f"run/tor-instances/{instance}.defaults"
            self.torrc = root / f"etc/tor/instances/{instance}/torrc"
        else:
            self.data, self.run = root / "var/lib/tor", root / "run/tor"
            self.defaults, self.torrc = root / "usr/share/tor/tor-service-defaults-torrc", root / "etc/tor/torrc"
        self.control = Endpoint.unix(self.run / "control")
        self.log = root / f"log{instance}"

    def _defaults(self) -> str:
        text = Path(f"{DEFAULTS}-instances").read_text() if self.instance else DEFAULTS.read_text()
        text = text.replace("_tor-@@NAME@@", USER).replace("@@NAME@@", self.instance)
        text = _PATH.sub(f"{self.root}/", text).replace("SocksPort 9050", "SocksPort auto")
        text = text.replace("Log notice syslog", "Log notice stdout")
        return text if os.geteuid() == 0 else text.replace(f"User {USER}\n", "")

    def _network_lines(self, network: Network) -> list[str]:
        """What makes a tor part of that network: all that its client has of its own, but for its places."""
        ours = ("DataDirectory", "ControlSocket", "SocksPort", "Log ", "CookieAuth")
        lines = network.client.torrc.read_text().splitlines()
        return [*(line for line in lines if line[:1].isalpha() and not line.startswith(ours)), *TESTING]

    def start(self) -> None:
        """As the unit does, in the foreground; ready when it takes commands."""
        argv = ["tor", "--defaults-torrc", str(self.defaults), "-f", str(self.torrc), "--RunAsDaemon", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                return self.connect().close()
            except TorError:
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                time.sleep(0.05)

    def connect(self) -> Tor:
        return connect(self.control, timeout_s=10)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def dropin(self) -> Path:
        return self.torrc.parent / "torrc.d" / "50-bento.conf"

    def files(self) -> dict[str, tuple[int, int, int, bytes]]:
        """All below etc: mode, owner, group, content. What --undo must leave as it was."""
        found = {}
        for path in sorted((self.root / "etc").rglob("*")):
            seen = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
            found[str(path.relative_to(self.root))] = (seen.st_mode, seen.st_uid, seen.st_gid, content)
        return found

    def verifies(self) -> bool:
        """Whether tor would start with the files as they are."""
        argv = ["tor", "--defaults-torrc", str(self.defaults), "-f", str(self.torrc), "--verify-config"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
