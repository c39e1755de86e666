"""Cases 64 to 69: what functions may try by `api.box`, and what another box may do to them by it. After each, a
function beside it still reaches an honest box, and the courier has gone on."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.protocol import frames
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, Role

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
BYTES = 8_000_000
CONFIG = """
socks = "{}"
first_uid = {}
ready = 2
[policy]
boxes = 2
box_bytes = {}
sessions = 64
sessions_per_connection = 64
[policy.limits]
wall_s = 60
memory_bytes = 134217728
"""
HEAD = "# /// script\n# [tool.bento]\n# box = true\n# ///\n"
PRELUDE = """
import errno, os, socket, time
def tried(what):
    try: return str(what() or '')
    except (OSError, ValueError, EOFError) as why:
        return errno.errorcode.get(getattr(why, 'errno', None), type(why).__name__)
def door(data, wait=True):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect('/run/box.sock')
    sock.sendall(data)
    if not wait: return sock
    said = b''
    try:
        while piece := sock.recv(65536): said += piece
    except ConnectionResetError: pass  # what it did not want to read
    return said[5:].split(b' ')[0].decode('latin-1')
def place(text): return bytes([len(text)]) + text.encode()
def each(said): return ' '.join(sorted(set(said)))
"""
# What a function says of a box that does as it likes: bytes that came, and how it ended.
LISTEN = """
def f(address, *_):
    count = 0
    try:
        with api.box(address, timeout_s=20) as there:
            for message in there.attach(bytes(32)): count += len(message)
        return f'ended after {count > 1_000_000}'
    except OSError as why:
        return f'{errno.errorcode.get(why.errno, type(why).__name__)} {count > 1_000_000} {why.strerror or why}'
"""


@dataclass(frozen=True)
class Case:
    """`expected`: how what it says begins; alternatives by `|`."""

    number: int
    name: str
    source: str
    expected: str
    box: str = "honest"


CASES = [
    Case(64, "store something there: orders that there are not",
         "def f(a, *_): return each(door(place(a + ':80') + bytes([k, 0, 0, 0, 1, 0])) for k in (0, 4, *range(6, 16)))",
         "misused"),
    Case(64, "store something there: bytes of the protocol",
         r"def f(a, *_): return door(place(a + ':80') + b'\0\0\0\x2d\x97\xa5Store\x01\xc4\x20' + bytes(32))",
         "misused"),
    Case(64, "a second errand on one connection",
         r"def f(a, t, *_):" "\n"
         r"    body = t + b'\0\4echo([], {})'" "\n"
         r"    run = bytes([1]) + len(body).to_bytes(4, 'big') + body" "\n"
         r"    return door(place(a + ':80') + run + run)[:0] + 'closed'",
         "closed"),
    Case(65, "tokens that it was not given",
         "def f(a, t, s, *_):\n    box = api.box(a)\n    return each([tried(lambda: box.run(os.urandom(32), 'echo')),\n"
         "      tried(lambda: box.run(s, 'echo')), tried(lambda: box.attach(t)), tried(lambda: box.shutdown(t))])",
         "EACCES"),
    Case(65, "a ticket of another box's",
         "def f(a, *_):\n    ticket = 'bento1:' + 'a' * 56 + '.onion:invocation:' + 'A' * 43\n"
         "    return tried(lambda: api.box(a).run(ticket, 'echo'))",
         "ValueError"),
    Case(66, "what is no box: the host, its network, names",
         "def f(a, *_): return each(door(place(text)) for text in ('127.0.0.1:9051', 'localhost:80',\n"
         "  'example.com:80', '', a, a + ':0', a + ':65536', a.upper() + ':80',\n"
         "  'x.' + a + ':80', a + ':80 ', a + ':80\\n', '[::1]:80'))",
         "misused"),
    Case(66, "an address of 255 bytes",
         "def f(a, *_): return door(place('a' * 255))", "misused"),
    Case(67, "many connections that say nothing",
         "def f(a, *_):\n    held = []\n    def more(): held.append(door(b'', wait=False))\n"
         "    said = each(tried(more) for _ in range(99))\n    return said + f' {len(held) > 9}'", " EMFILE True"),
    Case(67, "many connections at once",
         "def f(a, t, *_):\n    held = []\n    def more(): held.append(api.box(a).run(t, 'echo'))\n"
         "    said = each(tried(more) for _ in range(9))\n    return said + f' {len(held)}'", " EDQUOT 4"),
    Case(67, "more connections than it may",
         "def f(a, t, *_): return each(tried(lambda: api.box(a).attach(bytes(32))) for _ in range(30))",
         "EACCES EDQUOT"),
    Case(68, "another box: output without end",
         LISTEN.replace("attach(bytes(32))", "run(_[2], 'flood')"), "EDQUOT True"),
    Case(68, "another box: noise", LISTEN, "ECONNABORTED False", "noise"),
    Case(68, "another box: a frame of 4 GiB", LISTEN, "ECONNABORTED False", "huge"),
    Case(68, "another box: a policy that is none", LISTEN, "ECONNABORTED False", "policy"),
    Case(68, "another box: silence", LISTEN.replace("20", "4"), "TimeoutError False", "silence"),
    Case(68, "another box: a silent session", LISTEN.replace("20", "4"), "TimeoutError False", "silent session"),
    Case(68, "another box: hangs up, again and again", LISTEN, "ECONNABORTED False", "hangs up"),
    # Whichever bound it meets first: the window, or all that a session may carry.
    Case(68, "another box: more than its window", LISTEN, "ECONNABORTED|EDQUOT", "no window"),
]  # fmt: skip


# --- boxes that do as they like -----------------------------------------------------------------------------------


def served(conn: socket.socket, policy: bytes, opened: Callable[[socket.socket, int], object]) -> None:
    """As a box, until somebody opens a session."""
    connection = Connection(Role.BOX)
    digest = hashlib.sha256(policy).digest()
    with suppress(OSError):
        while data := conn.recv(65536):
            connection.receive_data(data)
            while (event := connection.next_event()) is not NEED_DATA:
                if isinstance(event, m.Open):
                    opened(conn, event.channel)
                    return
                if isinstance(event, m.Hello):
                    conn.sendall(connection.send(m.Welcome(m.VERSION, digest)))
                    if event.policy != digest:
                        told = m.Refused(0, m.Code.POLICY, "read this first"), m.Policy(policy, b"", b"")
                        conn.sendall(connection.send_many(told))


def past_its_window(conn: socket.socket, channel: int) -> None:
    """It attaches, and sends and sends, whatever the other side takes."""
    conn.sendall(frames.encode(m.Ack(channel, 0, 1 << 20), Role.BOX))
    part = bytes(m.MAX_DATA_BYTES)
    for number in range(2 * BYTES // len(part)):
        conn.sendall(frames.encode(m.Output(channel, number * len(part), part, False), Role.BOX))
    conn.recv(1)


def silent(conn: socket.socket, *_: object) -> None:
    while conn.recv(65536):
        pass


POLICY = document.encode(Policy())
BOXES: dict[str, Callable[[socket.socket], object]] = {
    "noise": lambda conn: conn.sendall(os.urandom(1 << 20)),
    "huge": lambda conn: (conn.sendall(b"\xff\xff\xff\xff" + bytes(1 << 16)), conn.recv(1 << 16)),
    "policy": lambda conn: served(conn, b"\xc1" * 60_000, silent),
    "silence": silent,
    "silent session": lambda conn: served(conn, POLICY, silent),
    "hangs up": lambda conn: served(conn, POLICY, lambda *_: None),
    "no window": lambda conn: served(conn, POLICY, past_its_window),
}


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def switch(load) -> Iterator[Any]:
    made = load(HERE.parent / "courier" / "switch.py").Switch()
    yield made
    made.close()


@pytest.fixture(scope="module")
def boxes(running_box, switch, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """One whose functions are hostile, and an honest one."""
    made = []
    try:
        for number in range(2):
            state = tmp_path_factory.mktemp("courier") / "s"
            config = CONFIG.format(switch.address, 1_881_000_000 + 1_000_000 * number, BYTES)
            made.append(running_box(state, config=config))
            switch.lead(made[-1].told["address"], f"{state}/box.sock")
        yield made[0], made[1]
    finally:
        for box in made:
            words = box.words()
            assert box.stop() == 0
            assert "Traceback" not in words, words


@pytest.fixture(scope="module")
def tokens(boxes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Of functions at the honest one: one that answers; its shutdown token; one that never ends."""
    with boxes[1].connect() as there:
        echo = there.upload(parse("echo", "def echo():\n    while True: api.send(api.recv())"))
        text = "def flood(*wait):\n    if wait: api.recv()\n    while True: api.send(bytes(65536))"
        flood = there.upload(parse("flood", text))
        yield echo.invocation, echo.shutdown_token, flood.invocation
        echo.shutdown()
        flood.shutdown()


def play(box: Any, text: str, *arguments: object) -> str:
    with box.connect() as there:
        session = there.run(parse("f", HEAD + PRELUDE + text), make_call("f", *arguments))
        said = [message.decode() for message in session]
        there.shutdown(session.maybe_shutdown)
        return " ".join([session.wait().word, *said, session.wait().detail])


def courier_of(box: Any) -> psutil.Process:
    """The first that the keeper forks, where there is no broker."""
    found = [each for each in psutil.Process(box.process.pid).children() if each.name() != "bwrap"]
    return min(found, key=lambda each: (each.create_time(), each.pid))


HONEST = """
def f(a, t):
    session = api.box(a).run(t, 'echo')
    session.send('still here')
    said = session.recv()
    session.end()
    session.wait()
    return said
"""


@pytest.mark.parametrize("case", CASES, ids=[f"{case.number} {case.name}" for case in CASES])
def test_a_hostile_function_or_box(boxes, tokens, switch, note, case) -> None:
    near, far = boxes
    courier = courier_of(near)
    address = far.told["address"] if case.box == "honest" else switch.lead_new(case.box, BOXES[case.box])
    del switch.asked[:]
    outcome = play(near, case.source, address, *tokens)[:100]
    note("courier", case.number, case.name, outcome)
    assert any(outcome.startswith(f"returned {each}") for each in case.expected.split("|")), outcome
    assert {host for host, _ in switch.asked} <= {address}
    assert len(switch.asked) <= 16
    assert play(near, HONEST, far.told["address"], tokens[0]) == "returned still here "
    assert courier.is_running() and courier_of(near).pid == courier.pid


def test_a_reader_that_never_reads_fills_nobodys_memory(boxes, tokens, note, eventually, lives) -> None:
    near, far = boxes
    text = (
        "def f(a, t):\n    s = api.box(a).run(t, 'flood', 'wait')\n    api.send(b'open')\n    api.recv()\n"
        "    s.send(b'go')\n    api.recv()"
    )
    with near.connect() as there:
        session = there.run(parse("f", HEAD + PRELUDE + text), make_call("f", far.told["address"], tokens[2]))
        assert next(iter(session)) == b"open"
        (worker,) = courier_of(near).children()
        before = worker.memory_info().rss
        session.send(b"go")
        eventually(lambda: worker.memory_info().rss > before + 1_000_000)
        assert play(near, HONEST, far.told["address"], tokens[0]) == "returned still here "
        grown = worker.memory_info().rss - before
        session.end()
        session.wait()
    eventually(lambda: not lives(worker))
    note("courier", 67, "output that the function does not read", f"{grown >> 20} MiB")
    assert grown < 40 << 20


@pytest.mark.parametrize("who", ["root", "an ordinary user"])
def test_a_parser_that_was_taken_over_has_only_what_its_function_had(switch, note, ordinary_user, who) -> None:
    target = switch.lead_new("taken", silent)
    script = HERE / "taken_over.py"
    if who == "root" and os.geteuid() == 0:
        command = [sys.executable, "-I", str(script), switch.address, target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    else:
        ordinary_user.add(script)
        done = ordinary_user.run("taken_over", switch.address, target)
    assert done.returncode == 0, done.stderr
    note("courier", 69, "another box's bytes run as code in the parser", done.stdout.strip())
    assert done.stdout.strip() == "refused [] and 3 streams"
