"""`policy block` on whole boxes with exit egress, in a world of their own, beside a real tor that states the policy."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bento_tor.client import connect, parse
from bento_tor.client.source import make_call

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

PUBLIC, OTHER, PUBLIC6 = "93.184.216.34", "93.184.216.35", "2606:2800::1"
FIRST_UID = 1_880_901_000
TORRC = """
DataDirectory {0}/data
ControlSocket {0}/control
CookieAuthentication 1
SocksPort 0
ORPort 9001
Address 93.184.1.1
AddressDisableIPv6 1
AssumeReachable 1
PublishServerDescriptor 0
ExitRelay 1
IPv6Exit 1
ExitPolicy accept *:*
"""
CONFIG = """
relay = "unix:{0}/control"
first_uid = {1}
ready = 1
audit = true
[policy]
egress = ["exit"]
egress_rules = ["accept 93.184.216.0/24", "reject *:25"]
[policy.limits]
wall_s = 60
"""
# A connection that is held, and echoes a byte for each message; then its end.
HOLD = parse(
    "f",
    """
# /// script
# [tool.bento]
# entry = "f"
# egress = "exit"
# ///
import socket
def f(host, port):
    sock = socket.create_connection((host, port), 20)
    while True:
        sock.sendall(b'x')
        try: got = sock.recv(1)
        except OSError: got = b''
        api.send(got or 'closed')
        if not got: return
        try: api.recv()
        except EOFError: pass
""",
)
REACH = parse(
    "f",
    """
# /// script
# [tool.bento]
# entry = "f"
# egress = "exit"
# ///
import socket
def f(host, port):
    try: socket.create_connection((host, port), 20).close()
    except OSError as error: return str(error)
    return 'reached'
""",
)


class WorldlyBox:
    """`bento-tor serve` in the world; its orders come from outside."""

    def __init__(self, world, folder: Path) -> None:
        self._world = world
        self.state = folder / "s"
        (folder / "box.toml").write_text(CONFIG.format(folder, FIRST_UID))
        self.log = (folder / "log").open("a+")
        self.process = subprocess.Popen(
            world.enter(sys.executable, "-m", "bento_tor.cli", "serve", "--state", str(self.state), "--json")
            + ["--config", str(folder / "box.toml")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        assert poll.poll(60_000) and self.process.stdout.readline(), self.words()

    def words(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def connect(self):
        return connect(f"unix:{self.state}/box.sock", timeout_s=30)

    def reach(self, host: str, port: int = 80) -> str:
        with self.connect() as there:
            (answer,) = there.run(REACH, make_call("f", host, port))
        return answer.decode()

    def stop(self) -> int:
        # Only now: nsenter has become serve itself, so the signal reaches it.
        self.process.terminate()
        status = self.process.wait(30)
        self.process.stdout.close()
        self.log.close()
        return status


@pytest.fixture(scope="module")
def folder(egress, world) -> Iterator[Path]:
    """With a real tor in the world, that states an exit policy."""
    with tempfile.TemporaryDirectory(prefix="bento-k-") as name:
        folder = Path(name)
        (folder / "torrc").write_text(TORRC.format(folder))
        command = world.enter("tor", "-f", str(folder / "torrc"), "--defaults-torrc", "/dev/null", "--quiet")
        with subprocess.Popen(command) as tor:
            try:
                egress.until((folder / "control").exists, "tor's control socket")
                yield folder
            finally:
                tor.terminate()
                tor.wait(30)


@pytest.fixture
def worldly(world, folder) -> Iterator[WorldlyBox]:
    box = WorldlyBox(world, folder)
    try:
        yield box
    finally:
        if box.process.poll() is None:
            assert box.stop() == 0
        (folder / "s" / "blocked").unlink(missing_ok=True)


def policy(*words: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "bento_tor.cli", "policy", *words, "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kernel(world) -> str:
    table = f"bento_tor_egress_{FIRST_UID - 1}"
    answer = subprocess.run(world.enter("nft", "list", "table", "inet", table), capture_output=True, text=True)
    return answer.stdout


def test_what_is_blocked_is_refused_and_closed_at_once_and_others_go_on(egress, world, worldly) -> None:
    egress.until(lambda: worldly.reach(PUBLIC) == "reached", "the exit policy is known")
    with worldly.connect() as there:
        goes, stays = [there.upload(HOLD).start(make_call("f", host, 8000)) for host in (OTHER, PUBLIC)]
        assert (goes.maybe_receive(), stays.maybe_receive()) == (b"x", b"x")
        told = policy("block", f"{OTHER}/32", "--state", str(worldly.state))
        assert told == {"destination": OTHER, "done": "blocked", "running": True, "in_force": True}
        # Answered: so it holds. No waiting from here on.
        assert f"ip daddr {OTHER} " in kernel(world)
        for session in (goes, stays):
            session.send(b"more")
        assert (goes.maybe_receive(), stays.maybe_receive()) == (b"closed", b"x")
        stays.end()
    assert "policy does not allow" in worldly.reach(OTHER)
    assert "policy does not allow" in worldly.reach(f"::ffff:{OTHER}")
    assert worldly.reach(PUBLIC) == "reached"
    policy("unblock", OTHER, "--state", str(worldly.state))
    assert OTHER not in kernel(world) and worldly.reach(OTHER) == "reached"
    audited = subprocess.run(
        [sys.executable, "-m", "bento_tor.cli", "audit", "--state", str(worldly.state), "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    events = json.loads(audited.stdout)["events"]
    assert {"egress refused"} <= {f"{event['kind']} {event['word']}" for event in events}
    assert OTHER not in audited.stdout


def test_a_port_and_a_network_of_either_family(egress, world, worldly) -> None:
    egress.until(lambda: worldly.reach(PUBLIC6) == "reached", "the exit policy is known")
    policy("block", f"{PUBLIC}:80", "--state", str(worldly.state))
    policy("block", f"{PUBLIC6}", "--state", str(worldly.state))
    assert "policy does not allow" in worldly.reach(PUBLIC) and worldly.reach(PUBLIC, 8000) == "reached"
    assert "policy does not allow" in worldly.reach(PUBLIC6, 8000)


def test_it_holds_from_the_start_of_the_next_box(egress, world, folder) -> None:
    first = WorldlyBox(world, folder)
    assert first.stop() == 0
    told = policy("block", OTHER, "--state", str(folder / "s"))
    assert (told["running"], told["in_force"]) == (False, False)
    second = WorldlyBox(world, folder)
    try:
        egress.until(lambda: second.reach(PUBLIC) == "reached", "the exit policy is known")
        assert "policy does not allow" in second.reach(OTHER) and f"ip daddr {OTHER} " in kernel(world)
        # A list that cannot be read is not an empty one: the running box keeps what it has, and says so.
        (folder / "s" / "blocked").write_text("accept *:*\n")
        done = subprocess.run(
            [sys.executable, "-m", "bento_tor.cli", "policy", "unblock", OTHER, "--state", str(folder / "s")],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 3 and "cannot be used" in done.stderr
        assert "policy does not allow" in second.reach(OTHER)
    finally:
        assert second.stop() == 0
    third = subprocess.run(
        world.enter(sys.executable, "-m", "bento_tor.cli", "serve", "--state", str(folder / "s"))
        + ["--config", str(folder / "box.toml")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert third.returncode == 3 and "cannot be used" in third.stderr, "it does not serve without its blocks"
    (folder / "s" / "blocked").unlink()
