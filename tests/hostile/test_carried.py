"""Cases 64 to 67: what is carried by a session and has rules of its own. Functions against the client's proxy, clients
against the function's, slots of a cover that are none, and a machine's figures that would drive a terminal.

After each: who tried is left or refused, nobody who waits is left waiting, and the next one is served.
"""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from rich.console import Console

from bento_tor.cli.client.monitor import drawn
from bento_tor.client import load, parse
from bento_tor.client.cover import Cover, Pace
from bento_tor.client.memory import MemoryBox, MemorySession
from bento_tor.client.monitoring import watch
from bento_tor.client.proxy import Proxy, listen
from bento_tor.client.source import make_call
from bento_tor.errors import BentoError
from bento_tor.policy.document import Policy

HEAD = struct.Struct("!BI")
OPEN, OPENED, REFUSED, DATA, END, RESET, CREDIT = range(1, 8)
ASK = b"\5\1\0\5\1\0\3\x0bexample.org\0\x50"
PIECE = bytes(32 * 1024)


def said(kind: int, number: int = 1, rest: bytes = b"") -> bytes:
    return HEAD.pack(kind, number) + rest


PROXY_LIES = [
    ("numbers that nobody opened", [said(DATA, 7, b"x")], "which nobody opened"),
    ("the highest number there is", [said(OPENED, 2**32 - 1)], "which nobody opened"),
    ("data before it is open", [said(DATA, 1, b"x")], "at the wrong time"),
    ("opened twice", [said(OPENED)] * 2, "at the wrong time"),
    ("data beyond its credit", [said(OPENED), *[said(DATA, 1, PIECE)] * 200], "credit"),
    ("credit beyond the window", [said(OPENED), said(CREDIT, 1, b"\xff" * 4)], "more credit"),
    ("a piece of 1 MiB", [said(OPENED), said(DATA, 1, bytes(1 << 20))], "1048576 bytes"),
    ("data after its end", [said(OPENED), said(END), said(DATA, 1, b"x")], "after its end"),
    ("what is no message", [b"\4\0"], "a message of 2 bytes"),
    ("an order of its own", [said(OPEN, 1, b"\0\x50x")], "a message 1"),
]


@pytest.mark.parametrize(("name", "lies", "why"), PROXY_LIES, ids=[row[0] for row in PROXY_LIES])
def test_a_function_that_lies_to_the_clients_proxy(name: str, lies: list[bytes], why: str, note) -> None:
    def lying(api: MemorySession) -> None:
        api.recv()
        for lie in lies:
            api.send(lie)
        api.recv()

    threads = threading.active_count()
    with MemoryBox({"proxy": lying}) as there, there.connect() as box, listen("127.0.0.1:0") as listener:
        session = box.run(parse("proxy", "def proxy(): ..."), make_call("proxy"))
        with socket.socket() as local:
            # It reads nothing, and the kernel takes little for it.
            local.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            local.settimeout(20)
            local.connect(listener.sock.getsockname())
            local.sendall(ASK)
            with pytest.raises(BentoError, match=why) as told, Proxy(session, listener) as proxy:
                proxy.run()
            with suppress(ConnectionError):
                while local.recv(65536):
                    pass
        session.end()
    note("client", 64, name, told.value.message)
    for thread in threading.enumerate():
        if thread.name.startswith("prox"):
            thread.join(timeout=10)
    assert threading.active_count() <= threads


CLIENT_LIES = [
    ("what is no message", [b"\1"]),
    ("a number that was never opened", [said(DATA, 7, b"x")]),
    ("numbers that go back", [said(OPEN, 9, b"\0\x50a"), said(OPEN, 3, b"\0\x50a")]),
    ("257 at once", [said(OPEN, n, b"\0\x50silent") for n in range(1, 400)]),
    ("an answer instead of a question", [said(OPENED)]),
]


@pytest.fixture(scope="module")
def carrier(running_box, tmp_path_factory) -> Iterator:
    """A box with a way out that leads nowhere: no relay says what it accepts."""
    config = 'first_uid = 1880500000\nrelay = "unix:/nowhere"\nready = 1\n[policy]\negress = ["exit"]\n'
    running = running_box(tmp_path_factory.mktemp("carrier") / "s", config=config)
    yield running
    assert running.stop() == 0


@pytest.mark.sandbox
@pytest.mark.parametrize(("name", "lies"), CLIENT_LIES, ids=[row[0] for row in CLIENT_LIES])
def test_a_client_that_lies_to_the_functions_proxy(carrier, name: str, lies: list[bytes], note) -> None:
    with carrier.connect() as there:
        session = there.run(load("proxy"), make_call("proxy"))
        for lie in lies:
            if not session.send(lie):
                break
        outcome = session.wait()
        note("box", 65, name, f"{outcome.word} {outcome.detail.strip().splitlines()[-1]}")
        assert outcome.word == "raised"
        honest = there.run(load("proxy"), make_call("proxy"))
        honest.send(said(OPEN, 1, b"\0\x50example.org"))
        assert honest.maybe_receive(timeout_s=30) == said(REFUSED, 1, b"\2")
        honest.finish()
        assert honest.wait().word == "returned"


SLOTS = [
    ("more in it than there is", b"\1\xff\xff" + bytes(100)),
    ("longer than was agreed", bytes(499)),
    ("1 MiB", bytes(1 << 20)),
]


@pytest.mark.parametrize(("name", "slot"), SLOTS, ids=[row[0] for row in SLOTS])
def test_a_cover_whose_slots_are_none(name: str, slot: bytes, note) -> None:
    pace = Pace.of(1, 1)
    with MemoryBox({"cover": lambda api, *_: api.send(slot)}) as there, there.connect() as box:
        session = box.run(parse("cover", "def cover(rate, seconds, jitter): ..."), pace.call())
        with Cover(session, pace) as cover, pytest.raises(BentoError, match="does not keep to the cover") as told:
            list(cover)
    note("client", 66, name, told.value.message)
    assert not cover._sender.is_alive()


def terminal(text: str) -> Callable[[MemorySession], None]:
    return lambda api, *_: api.send(json.dumps({"cpu_count": 2, "time": text, "addresses": [text]}))


FIGURES = [
    ("terminal's orders", terminal("\x1b[2J\x1b]0;x\x07\x9b1m\r\n\x08\u202e"), "shown"),
    ("a text of 1 MiB", terminal("x" * (1 << 20)), "something else than figures"),
    ("no figures at all", lambda api, *_: api.send(b"\x1b[2J"), "something else than figures"),
    ("figures without end", lambda api, *_: [api.send("{}") for _ in range(99)], "something else than figures"),
]


@pytest.mark.parametrize(("name", "function", "expected"), FIGURES, ids=[row[0] for row in FIGURES])
def test_a_box_that_tells_more_than_figures(name: str, function: Callable[..., object], expected: str, note) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200, color_system=None)
    policy = Policy(host_stats="full")
    with MemoryBox({"monitor": function}, policy=policy) as there, there.connect() as box:
        outcome = "shown"
        try:
            for report in watch(box, load("monitor"), count=2, sleep=lambda _: None):
                console.print(drawn(report, None, 0.0))
        except BentoError as why:
            outcome = why.message
        assert not there.stored
    note("client", 67, name, outcome)
    assert expected in outcome
    assert not set(shown.getvalue()) & set("\x1b\x07\x9b\r\x08\u202e")
