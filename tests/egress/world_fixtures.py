"""What the tests of egress share: a private world to connect to, a real broker in it, and a SOCKS client."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bento_tor.controller.streams import check_reachable
from bento_tor.egress import grants, nft, socks5
from bento_tor.egress.broker import Settings
from bento_tor.egress.grants import Caps, Carried, Egress, Grant, Noted, Rules
from bento_tor.egress.link import KeeperLine
from bento_tor.network import Network
from bento_tor.policy.destinations import Destinations
from bento_tor.policy.exit_policy import IPAddress, parse

HERE = Path(__file__).parent
# Nobody's, and above what the sandboxes of these tests take.
BROKER_UID = 1_880_900_000
DEADLINE_S = 15.0
OPEN_POLICY = "accept *:*\naccept6 *:*"
WEB_POLICY = "reject 93.184.216.35:*\naccept *:80\naccept *:1000-1999\naccept6 *:80\nreject *:*\nreject6 *:*"

# Every spelling of what must never be reached; sandbox.md C2 and cases 43-46.
NEVER = [
    "127.0.0.1", "0.0.0.0", "::1", "::", "10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2", "192.168.1.1", "172.31.0.1",
    "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.80", "198.18.0.1",
    "224.0.0.1", "255.255.255.255", "240.0.0.1", "ff02::1", "fe80::1", "2001:db8::1", "100::1", "fec0::1",
    "::ffff:127.0.0.1", "::ffff:10.99.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::1",
    "2001::7f00:1", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "0177.0.0.1", "2130706433", "017700000001",
    "127.0.0.1.", "localhost", "localhost.localdomain", "ip6-localhost", "box.local", "router.lan", "[::1]",
    "::ffff:7f00:1", "loop.example.com", "inner.example.com", "mapped.example.com", "metadata.example.com",
    "nat64.example.com", "unspecified.example.com", "LOOP.EXAMPLE.COM.",
]  # fmt: skip


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


@dataclass(frozen=True)
class World:
    """The two namespaces of world.py. `pid`: a process in the near one."""

    pid: int
    directory: Path

    def enter(self, *command: str) -> list[str]:
        """A command line that runs in the near namespace, with the world's resolver."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--", *command]

    def nft(self, text: str) -> None:
        """Load rules there."""
        subprocess.run(self.enter("nft", "-f", "-"), input=text, text=True, check=True)

    def asked(self) -> list[str]:
        """Every question that the DNS server has had."""
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def make_world(maybe_site: Path | None = None) -> Iterator[World]:
    """The two namespaces. `maybe_site`: a module whose `serve` is the web there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces joined by a cable")
    with tempfile.TemporaryDirectory(prefix="bento-w-") as directory:
        if maybe_site is not None:
            shutil.copy(maybe_site, Path(directory) / "site.py")
        command = ["unshare", "--net", "--mount", sys.executable, "-I", str(HERE / "world.py"), directory]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            yield World(process.pid, Path(directory))
        finally:
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


@contextmanager
def publish_box(world: World, network: Network, running_box: Any, state: Path, config: str) -> Iterator[Any]:
    """A box on that machine, beside a relay of the network that exits; its clients come by an onion service."""
    options = ("--publish", "--control", str(network.client.control))
    config = f'relay = "{network.exits[0].control}"\n{config}'
    box = running_box(state, *options, config=config, within=world.enter)
    try:
        check_reachable(network.client.socks, box.told["address"], 80, timeout_s=90)
        yield box
    finally:
        words = box.words()
        assert box.stop() == 0, words
        assert "Traceback" not in words, words


@dataclass
class RunningBroker:
    """A broker, with the ends of its lines that the keeper and the box would have."""

    process: subprocess.Popen[bytes]
    keeper: KeeperLine
    box: socket.socket
    directory: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    carried: list[Carried] = field(default_factory=list)

    def listener(self) -> tuple[socket.socket, Path]:
        """A session's socket, as the keeper makes it."""
        path = self.directory / f"{next(self.numbers)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(64)
        return listener, path

    def session(self, egress: Egress = "exit", hosts: tuple[str, ...] = (), caps: Caps | None = None) -> Path:
        """A session's door, open."""
        listener, path = self.listener()
        number = int(path.stem)
        self.keeper.offer(number, listener)
        listener.close()
        self.grant(Grant(number, egress, hosts, caps or Caps()))
        return path

    def grant(self, grant: Grant) -> None:
        self.box.send(grants.encode(grant))

    def noted(self) -> list[Noted]:
        """What it has said to the box since the last time."""
        found = []
        while True:
            try:
                found.append(grants.maybe_from_broker(self.box.recv(4096, socket.MSG_DONTWAIT)))
            except BlockingIOError:
                # What sessions have carried comes by the same line; kept, for whoever wants to know.
                self.carried += [message for message in found if isinstance(message, Carried)]
                return [message for message in found if isinstance(message, Noted)]


@contextmanager
def start_broker(
    world: World | None,
    *,
    policy: str | None = OPEN_POLICY,
    operator: tuple[str, ...] = (),
    own: tuple[str, ...] = (),
    settings: Settings | None = None,
    judges: bool = True,
    uid: int = BROKER_UID,
) -> Iterator[RunningBroker]:
    """A real broker in the near namespace, under a user id of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a user id of its own for the broker")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bento-b-")))
        keeper, theirs_keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        box, theirs_box = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(box.close)
        fds = (theirs_keeper.fileno(), theirs_box.fileno())
        words = [str(fds[0]), str(fds[1]), msgspec.json.encode(settings or Settings(offers=("exit", "tor"))).decode()]
        command = [
            sys.executable,
            "-I",
            str(HERE / "broker_main.py"),
            *words,
            str(uid),
            "seeing" if judges else "blind",
        ]
        process = subprocess.Popen(world.enter(*command) if world else command, pass_fds=fds)
        theirs_keeper.close()
        theirs_box.close()
        line = KeeperLine(keeper)
        running = RunningBroker(process, line, box, directory)
        try:
            line.set_rules(Rules(policy, operator, own))
            yield running
        finally:
            line.close()
            assert process.wait(15) == 0


def ask(
    door: Path, host: str, port: int, *, early: bytes = b"", timeout_s: float = DEADLINE_S
) -> tuple[int, socket.socket]:
    """Ask for a connection as a function would, past every convenience: the answer's code, and the socket."""
    try:
        target: str | IPAddress = ip_address(host)
    except ValueError:
        target = host
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(timeout_s)
        sock.connect(str(door))
        sock.sendall(b"\x05\x01\x00" + socks5.connect(target, port) + early)
        answer = exactly(sock, 12)
        assert answer[:2] == b"\x05\x00"
        stack.pop_all()
        return answer[3], sock


def code(door: Path, host: str, port: int) -> int:
    """The same, without the connection."""
    got, sock = ask(door, host, port)
    sock.close()
    return got


def get(door: Path, host: str, port: int = 80) -> bytes:
    """A page's body."""
    got, sock = ask(door, host, port)
    assert got == 0
    with sock:
        sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(4096), b"")).partition(b"\r\n\r\n")[2]


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the end after {data!r}"
        data += piece
    return data


def kernel_rules(policy: str, *, operator: tuple = (), uid: int = BROKER_UID, **more) -> str:
    """The table for the world's broker."""
    rules = Destinations(parse(policy), operator, **more)
    return nft.render(rules, uid=uid, resolvers=(ip_address("10.99.0.2"),))
