"""Cases 53 to 58 and 60: what clients, and functions by way of their output, may try with a whole box.

A case plays against a `Stage` and gives what came of it in words; test_box.py looks at the box besides.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from psutil import NoSuchProcess

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.errors import BentoError, Refused
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role

MARK = "a-text-of-the-function"
ONCE = parse("f", "def f(): return 'still here'")
WAITS = parse("f", "def f():\n    api.send('up'); api.recv()")


class Raw:
    """A client that says what it likes."""

    def __init__(self, box: Any, *, hello: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        # Blocking: else a backlog that is full for a moment is an error.
        self.sock.connect(box.address.removeprefix("unix:"))
        self.sock.settimeout(30)
        self.connection = Connection(Role.CLIENT)
        if hello:
            self.send(m.Hello(m.VERSION, None))
            digest = self.next().policy
            self.next(), self.next()
            self.send(m.Hello(m.VERSION, digest))
            self.next()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *messages: m.Message) -> None:
        self.sock.sendall(self.connection.send_many(messages))

    def next(self) -> Any:
        while (event := self.connection.next_event()) is NEED_DATA:
            self.connection.receive_data(self.sock.recv(65536))
        return event

    def rest(self) -> bytes:
        """Everything until the box closes."""
        parts = []
        with suppress(ConnectionError):
            while part := self.sock.recv(65536):
                parts.append(part)
        return b"".join(parts)


@dataclass
class Stage:
    """The box that is played against, and how to start one of a case's own (options of its settings)."""

    box: Any
    own_box: Callable[[str], Any]
    until: Callable[[Callable[[], object]], None]
    lives: Callable[[Any], bool]

    @contextmanager
    def running(self, source: Any) -> Iterator[tuple[Any, Any]]:
        """A connection, and a session of `source` on it; the function is erased afterwards."""
        with self.box.connect() as there:
            function = there.upload(source)
            yield function, function.start(make_call("f"))
            function.shutdown()

    def word(self, source: str) -> str:
        """How a function ends."""
        with self.running(parse("f", source)) as (_, session):
            said = [message.decode("utf-8", "replace") for message in session]
            return " ".join([session.wait().word, *said])


@dataclass(frozen=True)
class Case:
    """`expected`: what came of it. `events`: what the audit gets besides sessions that returned (None: as it comes)."""

    number: int
    name: str
    play: Callable[[Stage], str]
    expected: str
    events: dict[str, int] | None = None
    weak: str = ""  # expected where there are no cgroups


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def packed(*fields: Any) -> bytes:
    return framed(msgspec.msgpack.encode(fields))


T = bytes(32)
BEFORE_HELLO = [
    b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", packed("Helo", 1, None), packed("Close", 1), framed(b"\x91" * 200),
    framed(b"\x83\xa1a\x01\xa1a\x01\xa1a\x02"), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(99),
    b"GET / HTTP/1.1\r\n\r\n", struct.pack("!I", 10 << 20) + b"9" * 1000,
]  # fmt: skip
AFTER_HELLO = [
    framed(b"\x92\xa4Ping" + b"\x91" * 60_000 + b"\x90"), packed("Ping", float("nan")), packed("Ping", -1),
    framed(b"\x92\xa4Ping" + b"\xcf" + b"\xff" * 8), framed(b"\x94\xa5Chunk\x01\x00\xc6\xff\xff\xff\xff"),
    packed("Shutdown", 1, T[:31]), packed("Shutdown", 1, T + b"\0"), packed("Shutdown", 1, ""),
    packed("Input", 1, 0, b"a", False, False), packed("Hello", 1, T), packed("Store", 1, T, T, b"", 1 << 40, T),
]  # fmt: skip


def illegal_frames(stage: Stage) -> str:
    outcomes = Counter()
    for hello, frames in ((False, BEFORE_HELLO), (True, AFTER_HELLO)):
        for frame in frames:
            with Raw(stage.box, hello=hello) as raw:
                raw.sock.sendall(frame)
                outcomes[raw.rest().count(b"Refused")] += 1
    return f"refusals of each: {sorted(outcomes)}"


def digits(stage: Stage) -> str:
    """What Python takes minutes to make a number of, where nobody stops it."""
    with stage.running(WAITS) as (function, _), Raw(stage.box) as raw:
        token = os.urandom(32)
        arguments = f"([{'9' * 32_000}], {{}})"
        raw.send(m.Execute(1, function.invocation, token, "f", arguments), m.Open(1, token, 0))
        while not isinstance(said := raw.next(), m.Ended):
            pass
        return said.outcome


def crowd(stage: Stage) -> str:
    """Half headers, half frames, nothing at all, and a byte now and then."""
    with ExitStack() as stack:
        raws = [stack.enter_context(Raw(stage.box, hello=False)) for _ in range(1000)]
        for number, raw in enumerate(raws):
            raw.sock.sendall((b"", b"\0\0", b"\0\0\0\x20\x93", b"\0\0\0\xf0" + bytes(100))[number % 4])
        drips = [stack.enter_context(Raw(stage.box)) for _ in range(20)]
        deadline = time.monotonic() + 30
        while drips and time.monotonic() < deadline:
            for raw in drips:
                with suppress(OSError):
                    raw.sock.sendall(b"\0")  # a length of zero, in the end: illegal
            time.sleep(0.02)
            drips = [raw for raw in drips if not _has_ended(raw)]
        with stage.box.connect() as there:
            answer = list(there.run(ONCE))
        return f"answered: {answer[0].decode()}; {len(drips)} of those that drip are left"


def _has_ended(raw: Raw) -> bool:
    raw.sock.setblocking(False)
    try:
        while raw.sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        raw.sock.settimeout(30)
    return True


BOMB = """def f():
    import zlib
    packer = zlib.compressobj(9)
    small = b''.join([packer.compress(bytes(1 << 20)) for _ in range(200)]) + packer.flush()
    kept = zlib.decompress(small)
    return len(kept)"""
ARCHIVE = """def f():
    import io, os, stat, tarfile, zipfile
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as made:
        for name in ('../x', '/etc/x', '../../usr/x', 'same', 'same'): made.writestr(name, 'x')
    with zipfile.ZipFile(file) as made: made.extractall('/data/out')
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as made:
        for name, kind, to in (('l', b'2', '/etc/shadow'), ('d', b'3', ''), ('../../y', b'0', '')):
            info = tarfile.TarInfo(name); info.type, info.linkname = kind, to
            made.addfile(info)
    file.seek(0)
    results = []
    with tarfile.open(fileobj=file) as made:
        for info in made:
            try: made.extract(info, '/data/out'); results.append('inside')
            except Exception as why: results.append(type(why).__name__)
    assert not [p for p in ('/x', '/y', '/etc/x', '/usr/x') if os.path.lexists(p)]
    try: open('/data/out/l').read(); return 'read'
    except OSError as why: return type(why).__name__"""


def bomb(stage: Stage) -> str:
    return stage.word(BOMB)


def archive(stage: Stage) -> str:
    return stage.word(ARCHIVE)


def archive_as_code(stage: Stage) -> str:
    with stage.running(msgspec.structs.replace(ONCE, text="PK\x03\x04\0\0\0\0 def f(): pass")) as (_, session):
        return session.wait().word


GUESSES = [T, b"\xff" * 32, b"../../../../../../etc/shadow\0\0\0\0", b"' OR 1=1 --".ljust(32), b"%s%n%x%p" * 4]


def guesses(stage: Stage) -> str:
    """Whatever does not open it is answered alike."""
    with stage.running(WAITS) as (function, session), Raw(stage.box) as raw:
        wrong = [*GUESSES, *(os.urandom(32) for _ in range(35))]
        flipped = bytes([function.invocation[0] ^ 1]) + function.invocation[1:]
        answers, channel = Counter(), 0
        for token in (*wrong, flipped):
            ask = m.Execute, m.Open, m.Shutdown
            raw.send(ask[0](channel + 1, token, os.urandom(32), "f", "([], {})"))
            raw.send(ask[1](channel + 2, token, 0), ask[2](channel + 3, token))
            channel += 3
            answers.update((said.code, said.message) for said in (raw.next(), raw.next(), raw.next()))
        session.end()
        return "; ".join(f"{code}: {text}" for code, text in answers)


def wrong_roles(stage: Stage) -> str:
    """A token opens what it is for, and nothing else."""
    with stage.running(WAITS) as (function, session), Raw(stage.box) as raw:
        invocation, token, shutdown = function.invocation, session.token, function.shutdown_token
        asked = [
            m.Shutdown(1, invocation), m.Shutdown(2, token), m.Open(3, invocation, 0), m.Open(4, shutdown, 0),
            m.Execute(5, token, os.urandom(32), "f", "([], {})"),
            m.Execute(6, shutdown, os.urandom(32), "f", "([], {})"),
        ]  # fmt: skip
        raw.send(*asked)
        said = {raw.next().code for _ in asked}
        session.end()
        return " ".join(said)


def two_readers(stage: Stage) -> str:
    """Of two who have the session's token, the newest reads; said twice, it is not run twice."""
    with stage.running(WAITS) as (function, session), Raw(stage.box) as first, Raw(stage.box) as second:
        assert next(iter(session)) == b"up"
        said = []
        for raw in (first, second):
            raw.send(m.Open(1, session.token, 0))
            while not isinstance(raw.next(), m.Output):
                pass
        said.append(next(_until(first, m.Refused)).code)
        second.send(m.Execute(2, function.invocation, session.token, "f", "([], {})"))
        said.append(f"known: {next(_until(second, m.Started)).known}")
        second.send(m.End(1))
        said.append(next(_until(second, m.Ended)).outcome)
        second.send(m.Execute(3, function.invocation, session.token, "f", "([], {})"))
        said.append(f"known: {next(_until(second, m.Started)).known}")
    return " ".join(said)


def _until(raw: Raw, kind: type) -> Iterator[Any]:
    while True:
        if isinstance(said := raw.next(), kind):
            yield said
        assert not isinstance(said, EndOfStream)


NOISE = f"""def f():
    import sys
    line = '{MARK}\\x1b[2J\\x1b]0;x\\x07\\r\\n' * 1000
    for _ in range(1000):
        print(line); print(line, file=sys.stderr)
    raise ValueError('{MARK}\\x1b[31m\\r\\n' * 300_000)"""
FLOOD = "def f():\n    while True: api.send(bytes(1 << 20))"


def noise(stage: Stage) -> str:
    with stage.running(parse("f", NOISE)) as (_, session):
        list(session)
        outcome = session.wait()
        assert len(session.log) <= m.MAX_LOG_BYTES and len(outcome.detail) <= m.MAX_TEXT_CHARS
    words = stage.box.words()
    return f"{outcome.word}; {'in' if MARK in words or chr(27) in words else 'not in'} the box's log"


def flood(stage: Stage) -> str:
    with stage.running(parse("f", FLOOD)) as (_, session):
        for _ in session:
            pass
        return session.wait().word


VAST = """
def f():
    import time
    for n in range(50_000): api.pad_to(n % 1000, 0)
    api.pad_to(1 << 32); time.sleep(20)
"""


def vast_padding(stage: Stage) -> str:
    with stage.box.connect() as there:
        session = there.run(parse("f", VAST))
        word = session.wait().word
        there.shutdown(session.maybe_shutdown, last=True)  # what it promised before holds
        return word


def flood_unread(stage: Stage) -> str:
    with stage.running(parse("f", FLOOD)) as (_, session):
        session.wait_attached()
        with Raw(stage.box) as raw:  # who takes over, and reads nothing
            raw.send(m.Open(1, session.token, 0))
            time.sleep(1.5)
        session.end()
    return "it waited"


def expiring(stage: Stage) -> str:
    """A function that names its own end again and again; then one that runs on behind it."""
    storage = "# /// script\n# [tool.bento]\n# store = true\n# ///\n"
    again = "import time\ndef f():\n    until = time.monotonic() + 1.5\n    while time.monotonic() < until: "
    with stage.running(parse("f", f"{storage}{again}api.store.expire(1 << 62)\n    return 'done'")) as (_, session):
        said = [message.decode() for message in session]
    with stage.box.connect() as there:
        function = there.upload(parse("f", f"{storage}def f():\n    api.store.expire(0)\n    while True: api.recv()"))
        word = function.start(make_call("f")).wait().word
        try:
            function.start(make_call("f")).wait_attached()
        except Refused as no:
            return " ".join([*said, word, no.code])
    return "it is still there"


def abandon(stage: Stage) -> str:
    """200 clients who start and go."""
    with stage.box.connect() as there:
        function = there.upload(parse("f", "def f(): return 1"))
        for _ in range(200):
            token = os.urandom(32)
            with Raw(stage.box) as raw:
                raw.send(m.Execute(1, function.invocation, token, "f", "([], {})"), m.Open(1, token, 0))
        with stage.box.connect() as other:
            stage.until(lambda: _may_run(other))
        function.shutdown()
    return "a place is free"


def _may_run(there: Any) -> bool:
    with suppress(BentoError):
        return list(there.run(ONCE)) == [b"still here"]
    return False


def launcher_killed(stage: Stage) -> str:
    """bubblewrap itself, under a running function."""
    with stage.running(WAITS) as (_, session):
        assert next(iter(session)) == b"up"
        for child in stage.box.launchers():
            with suppress(NoSuchProcess):  # a bystander's, which has ended
                child.kill()
        word = session.wait().word
    with stage.box.connect() as there:
        return f"{word}; then {list(there.run(ONCE))[0].decode()}"


def process_killed(which: str) -> Callable[[Stage], str]:
    def play(stage: Stage) -> str:
        box = stage.own_box("")
        with box.connect() as there:
            function = there.upload(ONCE)
            token = os.urandom(32)
            invocation = function.invocation
            with Raw(box) as raw:
                raw.send(m.Execute(1, invocation, token, "f", "([], {})"))  # in the middle of a start
                os.kill(box.process.pid if which == "keeper" else box.reader().pid, signal.SIGKILL)
                children = box.last_children
                box.process.wait(30)
        stage.until(lambda: not any(map(stage.lives, children)))
        again = stage.own_box("")
        with again.connect() as there:
            return list(there.function(invocation).start(make_call("f")))[0].decode()

    return play


def cgroup_removed(stage: Stage) -> str:
    box = stage.own_box("ready = 0\n")
    for path in box.cgroups():
        os.rmdir(path)
    with box.connect() as there, Raw(box) as raw:
        function = there.upload(ONCE)
        token = os.urandom(32)
        raw.send(m.Execute(1, function.invocation, token, "f", "([], {})"), m.Open(1, token, 0))
        said = raw.next()
        return f"{said.code}: {said.message}"


def pool_killed(stage: Stage) -> str:
    box = stage.own_box("ready = 3\n")
    stage.until(lambda: box.sandboxes() == 3)
    for child in box.launchers():
        child.kill()
    with box.connect() as there:
        return list(there.run(ONCE))[0].decode()


REACH = """# /// script
# [tool.bento]
# egress = "exit"
# ///
def f():
    import socket
    try: socket.create_connection(('93.184.216.34', 80), 10)
    except OSError as why: return type(why).__name__ + ' ' + str(why)
    return 'connected'"""
# A user id of its own for the broker: other boxes may run on this machine.
EGRESS = 'relay = "unix:/nowhere"\nfirst_uid = 1880700000\n'


def exit_policy_unknown(stage: Stage) -> str:
    """The relay's tor is gone, so nobody knows what it accepts."""
    with stage.own_box(EGRESS).connect() as there:
        return list(there.run(parse("f", REACH)))[0].decode()


SMALL = """# /// script
# [tool.bento]
# disk = 1
# ///
def f():
    import os
    written = 0
    for name in range(64):
        try:
            fd = os.open(f'/data/{name}', 65)
            while written < 1 << 24: written += os.write(fd, bytes(4096))
        except OSError: pass
    return f'{written} bytes'"""


def small_disk(stage: Stage) -> str:
    """A session from the pool, whose /data was the policy's when it was made."""
    stage.until(lambda: stage.box.sandboxes() >= 2)
    with stage.running(parse("f", SMALL)) as (_, session):
        said = [message.decode() for message in session]
        return " ".join([session.wait().word, *said])


CASES = [
    Case(15, "more /data than its manifest asked for", small_disk, "returned 1048576 bytes", {}),
    Case(53, "illegal frames, one by one", illegal_frames, "refusals of each: [1]", {"refusal protocol": 21}),
    Case(53, "32,000 digits", digits, "raised", {"end raised": 1, "end killed:user": 1}),
    Case(54, "1,000 idle connections, half frames, drips", crowd,
         "answered: still here; 0 of those that drip are left"),
    Case(55, "a decompression bomb", bomb, "killed:memory", {"end killed:memory": 1, "limit memory": 1}, "raised"),
    Case(55, "archives with .., links, devices", archive, "returned PermissionError|returned FileNotFoundError", {}),
    Case(55, "an archive as code", archive_as_code, "raised", {"end raised": 1}),
    Case(56, "tokens guessed", guesses, "token: this token opens nothing here",
         {"refusal token": 123, "end killed:user": 1}),
    Case(57, "tokens in other roles", wrong_roles, "token", {"refusal token": 6, "end killed:user": 1}),
    Case(57, "two readers, and an Execute again", two_readers, "displaced known: True killed:user known: True",
         {"end killed:user": 1, "refusal displaced": 2}),
    Case(58, "noise on every stream, terminal's orders", noise, "raised; not in the box's log", {"end raised": 1}),
    Case(58, "output without end", flood, "killed:output", {"end killed:output": 1, "limit output": 1}),
    Case(58, "an end that is named again and again, and outlived", expiring, "done killed:time token",
         {"end killed:time": 1, "limit time": 1, "refusal token": 1}),
    Case(58, "padding that nobody could tell from a flood", vast_padding, "killed:policy", {"end killed:policy": 1}),
    Case(58, "output that nobody reads", flood_unread, "it waited", {"end killed:user": 1, "refusal displaced": 1}),
    Case(60, "200 clients who start and go", abandon, "a place is free"),
    Case(60, "bubblewrap killed under a function", launcher_killed, "crashed:SIGKILL; then still here"),
    Case(60, "every ready sandbox killed", pool_killed, "still here"),
    Case(60, "keeper killed in the middle of a start", process_killed("keeper"), "still here"),
    Case(60, "box killed in the middle of a start", process_killed("box"), "still here"),
    Case(60, "cgroups removed", cgroup_removed, "unavailable: this box cannot start functions now"),
    Case(60, "no relay, no exit policy", exit_policy_unknown,
         "PermissionError [Errno 13] no connection to 93.184.216.34:80: this box's policy does not allow it"),
]  # fmt: skip
