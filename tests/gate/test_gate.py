"""`api.tor` from end to end: real boxes, a real network of tors, functions in the real jail."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.controller.services import own_descriptor
from bento_tor.controller.streams import open_stream
from bento_tor.errors import Refused
from bento_tor.gate.words import NAMES
from bento_tor.network import Network
from bento_tor.resources import read_text

pytestmark = pytest.mark.sandbox

PAGE = "a page of a function's\n"
WITHIN_S = 60.0


def config(network: Network, *, routines: tuple[str, ...] = NAMES, more: str = "") -> str:
    listed = ", ".join(f'"{name}"' for name in routines)
    return f"""
gate_control = "{network.client.control}"
ready = 1
{more}
[policy]
tor = [{listed}]
[policy.limits]
wall_s = 180
memory_bytes = 67108864
"""


def asking(text: str, *routines: str):
    listed = ", ".join(f'"{name}"' for name in routines)
    return parse("f", f"# /// script\n# [tool.bento]\n# tor = [{listed}]\n# ///\n{text}")


SERVE_PAGE = parse("serve_page", read_text("functions", "serve_page.py"))


def serve_page(there):
    """A session that serves PAGE, and its address."""
    session = there.run(SERVE_PAGE, make_call("serve_page", PAGE))
    said = next(iter(session), None)
    assert said is not None, session.wait()
    return session, said.decode()


def curl(network: Network, address: str) -> subprocess.CompletedProcess[str]:
    # Each with a user of its own: a circuit that hangs is nobody else's.
    proxy = f"{os.urandom(4).hex()}:x@{network.client.socks}"
    return subprocess.run(
        ["curl", "-sS", "-m", "30", "--proxy", f"socks5h://{proxy}", f"http://{address}/"],
        capture_output=True,
        text=True,
    )


def reads(network: Network, address: str) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while (done := curl(network, address)).returncode:
        assert time.monotonic() < deadline, done.stderr
    return done.stdout == PAGE


def circuits_of_gates(network: Network) -> list[str]:
    with network.connect(network.client) as tor:
        return [line for line in tor.get_info("circuit-status").splitlines() if 'SOCKS_USERNAME="bento-gate-' in line]


def until(what) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.1)


def is_dead(network: Network, address: str) -> bool:
    """Whether its tor has that service no more: curl would try for half a minute to reach it."""
    with network.connect(network.client) as tor:
        return not own_descriptor(tor, address)


def test_a_page_from_inside_a_sandbox(tor_network, new_box) -> None:
    running = new_box(config=config(tor_network))
    with running.connect() as there:
        session, address = serve_page(there)
        assert address.endswith(".onion") and len(address) == 62
        assert reads(tor_network, address), "each directory that is asked has its descriptor by now"
        assert not is_dead(tor_network, address)
        # As anybody would.
        plain = ["curl", "-sS", "-m", "60", "--socks5-hostname", str(tor_network.client.socks), f"http://{address}/"]
        assert subprocess.run(plain, capture_output=True, text=True, check=True).stdout == PAGE
        assert all(reads(tor_network, address) for _ in range(2))
        session.send(b"enough")
        assert session.wait().word == "returned"
    until(lambda: is_dead(tor_network, address))
    assert not list((running.state / "gate").iterdir())


def test_a_session_that_is_killed_leaves_nothing_in_tor(tor_network, new_box) -> None:
    running = new_box(config=config(tor_network))
    text = "def f(onion):\n    api.tor.new_circuit()\n    s = api.tor.connect(onion, 80)\n    api.send(''); api.recv()"
    with running.connect() as there:
        serving, address = serve_page(there)
        assert reads(tor_network, address)
        knocking = there.run(asking(text, "connect", "new_circuit"), make_call("f", address))
        assert next(iter(knocking)) == b""
        assert circuits_of_gates(tor_network)
        for session in (knocking, serving):
            session.end()
            assert session.wait().word == "killed:user"
    until(lambda: not circuits_of_gates(tor_network))
    until(lambda: is_dead(tor_network, address))


ALL = """
def f(onion):
    relays = api.tor.network()
    api.send(str(sorted(relays[0])) + str(len({relay['fingerprint'] for relay in relays})))
    second = api.tor.new_circuit()
    for more in ({}, {'circuit': second}):
        with api.tor.connect(onion, 80, timeout_s=60, **more) as stream:
            stream.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            api.send(b''.join(iter(lambda: stream.recv(4096), b'')))
    mine = api.tor.circuits()
    api.send(str(sorted({each['circuit'] for each in mine}) + sorted({key for each in mine for key in each})))
    api.tor.close_circuit(second)
    api.send(str(second in {each['circuit'] for each in api.tor.circuits()}))
"""


def test_every_routine(tor_network, new_box) -> None:
    running = new_box(config=config(tor_network))
    with running.connect() as there:
        serving, address = serve_page(there)
        assert reads(tor_network, address)
        session = there.run(asking(ALL, *NAMES), make_call("f", address))
        told, first, second, circuits, left = (message.decode() for message in session)
        assert session.wait().word == "returned", session.wait()
        serving.end()
    assert told == f"['bandwidth', 'fingerprint', 'flags', 'nickname']{len(tor_network.relays) + 3}"
    assert first.endswith(PAGE) and second.endswith(PAGE)
    # Of another kind is nothing told: no path, no guard, no number of tor's.
    assert circuits == "[1, 2, 'circuit', 'hops', 'status']"
    assert left == "False"


def test_so_many_circuits_and_services(tor_network, new_box) -> None:
    text = """
def f():
    for make, most in ((api.tor.new_circuit, 8), (lambda: api.tor.publish(80), 4)):
        made = 0
        try:
            while made < 100:
                make()
                made += 1
        except OSError as why:
            api.send(f'{made} {most} {why}')
    for number in range(8):
        try: api.tor.close_circuit(number)
        except KeyError: pass
    for _ in range(100):
        try: api.tor.close_circuit(api.tor.new_circuit())
        except OSError as why: return str(why)
"""
    running = new_box(config=config(tor_network))
    with running.connect() as there:
        session = there.run(asking(text, *NAMES))
        circuits, services, hour = (message.decode() for message in session)
        assert session.wait().word == "returned", session.wait()
    assert circuits.startswith("8 8 ") and services.startswith("4 4 ")
    assert "in this hour" in hour


def test_a_box_that_hides_gives_no_circuits_at_will(tor_network, new_box) -> None:
    text = """
def f(onion):
    try: api.tor.new_circuit()
    except PermissionError as why: api.send(str(why))
    api.tor.connect(onion, 80).close()
    kept = api.tor._ask(1, host=onion, port=80)['ticket']
    api.tor.close_circuit(1)
    import socket
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect('/run/tor.sock')
        sock.sendall(bytes.fromhex(kept))
        api.send(f'{sock.recv(1)} hides')
    try: api.tor.connect(onion, 80)
    except PermissionError as why: api.send(str(why))
"""
    more = f'control = "{tor_network.client.control}"'
    running = new_box("--publish", config=config(tor_network, more=more))
    with running.connect() as there:
        session = there.run(asking(text, *NAMES), make_call("f", running.told["address"]))
        said = [message.decode() for message in session]
        assert session.wait().word == "returned", session.wait()
    assert len(said) == 3 and all("hides" in each for each in said)
    assert "b'\\x02' hides" in said


@pytest.fixture
def echo() -> Iterator[int]:
    """A port of 127.0.0.1 that says back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(conn: socket.socket) -> None:
        with conn, suppress(OSError):
            while data := conn.recv(100):
                conn.sendall(data)

    def accept() -> None:
        while True:
            try:
                conn, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(conn,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


@pytest.mark.parametrize("victim", ["keeper", "box", "gate"])
def test_who_is_killed_leaves_others_on_that_tor_working(tor_network, new_box, echo, victim) -> None:
    running = new_box(config=config(tor_network))
    with ExitStack() as stack:
        # Somebody else's service and stream, on the same tor.
        tor = stack.enter_context(tor_network.connect(tor_network.client))
        other = tor.ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK Port=80,127.0.0.1:{echo}")
        theirs = other.lines[0].removeprefix("ServiceID=") + ".onion"
        stream = stack.enter_context(open_stream(tor_network.client.socks, theirs, 80, timeout_s=90))
        there = stack.enter_context(running.connect())
        serving, address = serve_page(there)
        assert reads(tor_network, address)
        {"keeper": psutil.Process(running.process.pid), "box": box_of(running), "gate": gate_of(running)}[victim].kill()
        until(lambda: is_dead(tor_network, address))
        stream.settimeout(30)
        stream.sendall(b"still here")
        assert stream.recv(100) == b"still here"
        open_stream(tor_network.client.socks, theirs, 80, timeout_s=90).close()
        if victim == "gate":
            # The box goes on, without that way.
            refused = there.run(
                asking("def f():\n    try: api.tor.network()\n    except OSError: return 'no'", "network")
            )
            assert list(refused) == [b"no"] and refused.wait().word == "returned"
            serving.end()
            assert running.stop() == 0
        else:
            running.process.wait(30)
    # What the killed one left, the next one ends.
    again = new_box(config=config(tor_network))
    assert not circuits_of_gates(tor_network)
    assert again.stop() == 0


def children(running) -> list[psutil.Process]:
    """The three of ours besides the keeper: in the order in which they were made."""
    found = [one for one in psutil.Process(running.process.pid).children() if one.name() != "bwrap"]
    return sorted(found, key=lambda one: (one.create_time(), one.pid))


def gate_of(running) -> psutil.Process:
    return children(running)[0]


def box_of(running) -> psutil.Process:
    return children(running)[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="user ids of their own need root")
def test_who_holds_the_control_connection(tor_network, new_box) -> None:
    running = new_box(config=config(tor_network))
    until(lambda: running.sandboxes() == 1)  # the keeper is at rest
    gate, box = gate_of(running), box_of(running)
    assert gate.pid != box.pid
    uids = {process.uids().real for process in (gate, box)}
    assert len(uids) == 2 and min(uids) >= 1000
    assert gate.uids().saved == gate.uids().real
    status = Path(f"/proc/{gate.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    path = str(tor_network.client.control.path)
    control_inodes = connected_to(path)
    assert sockets_of(gate) & control_inodes
    assert not sockets_of(box) & control_inodes
    assert not sockets_of(psutil.Process(running.process.pid)) & control_inodes


def sockets_of(process: psutil.Process) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.add(str(fd.readlink()))
    return {each.removeprefix("socket:[").removesuffix("]") for each in found if each.startswith("socket:[")}


def connected_to(path: str) -> set[str]:
    """The sockets whose other end is at that path."""
    listed = subprocess.run(["ss", "-xnH"], capture_output=True, text=True, check=True).stdout
    return {line.split()[7] for line in listed.splitlines() if line.split()[4] == path}


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('[policy]\ntor = ["resolve"]', 3, "resolve"),
        ('[policy]\ntor = ["connect"]', 3, "gate_control"),
        ('gate_control = "unix:/nowhere/control"\n[policy]\ntor = ["connect"]', 4, "gate"),
        ('gate_control = "nowhere"\n[policy]\ntor = ["connect"]', 3, "HOST:PORT"),
    ],
)
def test_what_cannot_be_offered(bento, tmp_path, text, status, said) -> None:
    (tmp_path / "box.toml").write_text(text + "\n")
    done = bento("serve", "--state", str(tmp_path / "s"), "--config", str(tmp_path / "box.toml"))
    assert done.returncode == status, done.stderr
    assert said in done.stderr


def test_a_routine_that_the_policy_does_not_offer(tor_network, new_box) -> None:
    running = new_box(config=config(tor_network, routines=("network",)))
    with running.connect() as there, pytest.raises(Refused, match="publish"):
        there.run(asking("def f(): api.tor.publish(80)", "publish", "network")).wait()
