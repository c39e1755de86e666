"""Cases 61 to 63, against a whole box with a gate to a real tor: the control port, what is another session's, routines
that nobody granted. After each: the other session still has what it had, and the gate has gone on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.controller.streams import open_stream
from bento_tor.errors import Refused

pytestmark = pytest.mark.sandbox

OFFERED = ("connect", "new_circuit", "circuits", "close_circuit", "network")
MANIFEST = "# /// script\n# [tool.bento]\n# tor = [{}]\n# ///\n"
# The session that is to be robbed: a stream of its own, and a ticket that it gives away.
VICTIM = """
import json
def f(onion):
    api.tor.new_circuit()
    stream = api.tor.connect(onion, 80, timeout_s=100)
    told = api.tor._ask(1, host=onion, port=80)
    api.send(told['ticket'])
    while True:
        order = api.recv()
        stream.sendall(order)
        api.send(b'still mine' if stream.recv(4096) == order else b'gone')
"""
PRELUDE = """
import os, socket
def door(data):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect('/run/tor.sock')
        try:
            sock.sendall(data)
            return sock.recv(4096)
        except OSError:
            return b''
def tried(what):
    try: return what() or ''
    except (OSError, KeyError, ValueError) as why: return type(why).__name__
def forge(verb, port=80, handle=0, host=b''):
    with api._receiving:
        api._wire.write(0x8A, bytes([verb]) + port.to_bytes(2, 'big') + handle.to_bytes(8, 'big') + host)
        kind, body = api._wait_answer()
    return f'{kind:#x} ' + body.decode().split(' ')[0]
"""
CONTROL_PORT = """
def f(control, ticket, circuits):
    texts = (b'PROTOCOLINFO 1\\r\\n', b'AUTHENTICATE\\r\\nGETINFO version\\r\\n', bytes(16), b'\\x05\\x01' + bytes(14))
    said = {tried(lambda: door(text)) for text in texts}
    def knock(): socket.socket(socket.AF_UNIX).connect(control)
    said |= {tried(knock)}
    for host in ('127.0.0.1', '::1', 'localhost', '127.0.0.1.', '0.0.0.0', '10.0.0.1', '169.254.169.254'):
        said |= {tried(lambda: api.tor.connect(host, 9051, timeout_s=30).recv(1))}
    for host in ('a b', 'a\\r\\nGETINFO version', 'a\\0'):
        said |= {tried(lambda: api.tor.connect(host, 80, timeout_s=30).recv(1))}
    return str(sorted(map(str, said)))
"""
ANOTHERS = """
def f(control, ticket, circuits):
    said = {tried(lambda: door(bytes.fromhex(ticket)))}
    for number in {*range(64), *circuits, 1 << 61}:
        said |= {tried(lambda: api.tor.close_circuit(number))}
        if number:
            said |= {tried(lambda: api.tor.connect('example.com', 80, circuit=number))}
    return str(sorted(map(str, said))) + str(api.tor.circuits())
"""
FORGED = "def f(*_): return forge(5) + '; ' + forge(7, handle=1) + '; ' + forge(6)\n"
NO_VERB = "def f(*_): return forge(9)\n"
NO_HOST = "def f(*_): return forge(1, host=b'\\xff')\n"


@dataclass(frozen=True)
class Case:
    """`tor`: what its manifest asks for. `expected`: the outcome, and what it said."""

    number: int
    name: str
    source: str
    tor: tuple[str, ...]
    expected: str


CASES = [
    Case(61, "the control port, through its door and tor", CONTROL_PORT, OFFERED,
         "returned ['', 'FileNotFoundError', 'PermissionError']"),
    Case(62, "another session's ticket and circuits", ANOTHERS, OFFERED, "returned ['', 'KeyError'][]"),
    Case(63, "a routine that its manifest does not name, forged", FORGED, ("circuits",),
         "returned 0xd policy; 0xd policy; 0xd policy"),
    Case(63, "a verb that there is not", NO_VERB, ("circuits",), "killed:policy"),
    Case(63, "a host of no letters", NO_HOST, ("connect",), "killed:policy"),
    Case(63, "a verb, with no routine at all", FORGED, (), "killed:policy"),
    Case(63, "a routine that the policy does not offer", FORGED, ("publish",), "refused"),
]  # fmt: skip


@pytest.fixture(scope="module")
def onion(tor_network) -> Iterator[str]:
    """An onion service that says back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(conn: socket.socket) -> None:
        with conn, suppress(OSError):
            while data := conn.recv(100):
                conn.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    with tor_network.connect(tor_network.client) as tor:
        port = server.getsockname()[1]
        made = tor.ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK Port=80,127.0.0.1:{port}")
        address = made.lines[0].removeprefix("ServiceID=") + ".onion"
        open_stream(tor_network.client.socks, address, 80, timeout_s=90).close()
        yield address
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


@pytest.fixture(scope="module")
def box(running_box, tor_network, tmp_path_factory) -> Iterator[Any]:
    routines = ", ".join(f'"{name}"' for name in OFFERED)
    config = f"""
gate_control = "{tor_network.client.control}"
ready = 2
[policy]
tor = [{routines}]
[policy.limits]
wall_s = 240
memory_bytes = 67108864
"""
    running = running_box(tmp_path_factory.mktemp("gate") / "s", config=config)
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words
    with tor_network.connect(tor_network.client) as tor:
        assert "bento-gate-" not in tor.get_info("circuit-status")


@pytest.fixture(scope="module")
def victim(box, onion) -> Iterator[tuple[Any, str]]:
    """A session that has a stream, a circuit and a ticket; and that ticket."""
    with box.connect() as there:
        session = there.run(asking(VICTIM, OFFERED), make_call("f", onion))
        ticket = next(iter(session), None)
        assert ticket is not None, session.wait()
        yield session, ticket.decode()
        session.end()


def asking(source: str, tor: tuple[str, ...]) -> Any:
    listed = ", ".join(f'"{name}"' for name in tor)
    return parse("f", MANIFEST.format(listed) + PRELUDE + source)


def circuit_numbers(network: Any) -> list[int]:
    with network.connect(network.client) as tor:
        return [int(line.split(" ")[0]) for line in tor.get_info("circuit-status").splitlines()]


def play(box: Any, case: Case, *arguments: object) -> str:
    with box.connect() as there:
        try:
            session = there.run(asking(case.source, case.tor), make_call("f", *arguments))
            said = [message.decode() for message in session]
            return " ".join([session.wait().word, *said])
        except Refused:
            return "refused"


@pytest.mark.parametrize("case", CASES, ids=[f"{case.number} {case.name}" for case in CASES])
def test_a_hostile_function(box, victim, tor_network, case, note) -> None:
    session, ticket = victim
    control = str(tor_network.client.control.path)
    outcome = play(box, case, control, ticket, circuit_numbers(tor_network))
    note("gate", case.number, case.name, outcome)
    assert outcome == case.expected
    session.send(b"look")
    assert next(iter(session)) == b"still mine"
    bystander = Case(0, "", "def f(*_): return str(len(api.tor.network()) > 3)\n", ("network",), "")
    assert play(box, bystander) == "returned True"
