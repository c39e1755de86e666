"""What a hostile function or client must not be able to do to a box: eat its memory, its time, or its descriptors."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.errors import ConnectError
from bento_tor.policy import manifest as manifests
from bento_tor.protocol import frames
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, Role

pytestmark = pytest.mark.sandbox

MIB = 1 << 20


class RawClient:
    """A client that says what it likes: the protocol's state, and a socket that is read only when asked."""

    def __init__(self, box) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(box.state / "box.sock"))
        self.connection = Connection(Role.CLIENT)
        self.send(m.Hello(m.VERSION, None))
        welcome, _, _ = self.next(), self.next(), self.next()
        self.send(m.Hello(m.VERSION, welcome.policy))
        self.next()

    def send(self, *messages: m.Message) -> None:
        self.sock.sendall(self.connection.send_many(messages))

    def next(self):
        while (event := self.connection.next_event()) is NEED_DATA:
            self.connection.receive_data(self.sock.recv(65536))
        return event


@pytest.fixture
def raw(box) -> Iterator[Callable[[], RawClient]]:
    made: list[RawClient] = []

    def make() -> RawClient:
        made.append(RawClient(box))
        return made[-1]

    yield make
    for client in made:
        client.sock.close()


def reader_of(box) -> psutil.Process:
    """The process that parses what clients send."""
    return box.reader()


def sandboxes(box) -> int:
    return box.sandboxes()


def test_padding_that_a_function_asks_for_is_not_kept_in_memory(box) -> None:
    before = reader_of(box).memory_info().rss
    with box.connect() as there, box.connect() as other:
        session = there.run(parse("f", "def f():\n    for _ in range(9): api.pad(1 << 32)"), make_call("f"))
        session.wait_attached()
        time.sleep(0.5)
        # A flood that held the box up would do so for as long as it lasts; the machine may be a busy one.
        assert other.ping() < 15
        assert reader_of(box).memory_info().rss - before < 20 * MIB
        session.detach()


def test_padding_arrives_in_its_place_and_nothing_is_lost_after_it(box) -> None:
    with box.connect() as there:
        source = parse("f", "def f():\n    api.send('a'); api.pad(3_000_000); api.send('b'); return 'c'")
        session = there.run(source, make_call("f"))
        assert list(session) == [b"a", b"b", b"c"]
        assert session.offset == 3_000_000 + 6 and session.wait().word == "returned"


@pytest.mark.parametrize("frame", ["81", "84", "82"])
def test_a_flood_of_small_frames_keeps_nobody_else_waiting(box, frame: str) -> None:
    body = {"81": "00000000", "84": "00000000", "82": "0000000100"}[frame]
    text = f"""def f():
    import os
    flood = bytes.fromhex({frame + body!r}) * 10_000
    while True:
        os.write(api._wire._fd, flood)"""
    before = reader_of(box).memory_info().rss
    with box.connect() as other, box.connect() as there:
        other.ping()
        session = there.run(parse("f", text), make_call("f"))
        session.wait_attached()
        time.sleep(1)
        # A flood that held the box up would do so for as long as it lasts; the machine may be a busy one.
        assert other.ping() < 15
        assert reader_of(box).memory_info().rss - before < 20 * MIB
        session.end()
        assert session.wait().word == "killed:user"


def test_a_client_that_leaves_without_reading_is_not_kept(box, raw, eventually) -> None:
    before = reader_of(box).num_fds()
    pings = frames.encode(m.Ping(2**62), Role.CLIENT) * 400
    for client in [raw() for _ in range(20)]:
        client.sock.sendall(pings)
        client.sock.shutdown(socket.SHUT_WR)
    eventually(lambda: reader_of(box).num_fds() < before + 10)


def test_uploads_that_never_end_have_a_bound_together(box, raw) -> None:
    manifest, code = manifests.encode(manifests.Manifest()), []
    for client in [raw() for _ in range(3)]:
        for channel in range(1, 33):
            client.send(m.Store(channel, os.urandom(32), os.urandom(32), manifest, m.MAX_CODE_BYTES, bytes(32)))
        client.send(m.Ping(1))
        while not isinstance(answer := client.next(), m.Pong):
            if isinstance(answer, m.Refused):
                code.append(answer.code)
    assert code == [m.Code.FULL] * 32
    for client in (raw(), raw()):
        client.sock.close()


def test_what_an_older_reader_acknowledges_late_takes_nothing_from_the_newer_one(box, raw) -> None:
    text = "def f():\n    for i in range(10): api.send(bytes([i]) * 60000)\n    api.recv()"
    token, first, second = os.urandom(32), raw(), raw()
    with box.connect() as there:
        function = there.upload(parse("f", text))
        first.send(m.Execute(1, function.invocation, token, "f", "([], {})"), m.Open(1, token, 0))
        got = 0  # it acknowledges nothing, so the box waits for it in the middle of its window
        while got < 180_000:
            if isinstance(said := first.next(), m.Output):
                got = said.offset + len(said.data)
        second.send(m.Open(1, token, 0))
        first.sock.sendall(frames.encode(m.Ack(1, 180_000, 500_000), Role.CLIENT))
        messages, message = [], b""
        while len(messages) < 4:
            if isinstance(said := second.next(), m.Output):
                message += said.data
                if said.end:
                    messages.append(message)
                    message = b""
        assert messages == [bytes([i]) * 60000 for i in range(4)]
        function.shutdown()


def test_an_erased_function_does_not_run_though_it_was_just_being_started(
    box, raw, eventually, ready_sandboxes
) -> None:
    for delay_s in (0, 0.01, 0.02, 0.03):
        with box.connect() as there:
            function = there.upload(parse("g", "def g():\n    api.recv()"))
            client = raw()
            client.send(m.Execute(1, function.invocation, os.urandom(32), "g", "([], {})"))
            time.sleep(delay_s)
            function.shutdown()
            client.next()
    eventually(lambda: sandboxes(box) == ready_sandboxes)


def test_padding_from_a_client_takes_its_place_in_the_input(box, raw) -> None:
    token, client = os.urandom(32), raw()
    with box.connect() as there:
        function = there.upload(parse("f", "def f():\n    api.send(api.recv()); api.recv()"))
        client.send(m.Execute(1, function.invocation, token, "f", "([], {})"), m.Open(1, token, 0))
        client.send(m.Padding(1, 0, bytes(1000)), m.Input(1, 1000, b"hello", True, False))
        while not isinstance(said := client.next(), m.Output):
            if isinstance(said, m.Ack):
                received = said.received
        assert said.data == b"hello"
        with box.connect() as again:
            session = again.attach(token)
            session.wait_attached()
            assert again._wire.next_offset(session._place.channel) == 1006 >= received
        function.shutdown()


def test_a_session_that_was_left_has_no_outcome_to_wait_for(box) -> None:
    with box.connect() as there:
        session = there.run(parse("f", "def f():\n    api.recv()"), make_call("f"))
        session.detach()
        with pytest.raises(ConnectError, match="left"):
            session.wait()
        there.shutdown(session.maybe_shutdown)


def test_a_box_that_takes_nothing_does_not_hold_its_client(tmp_path: Path) -> None:
    from bento_tor.client.transport import SocketStream
    from bento_tor.client.wire import Wire

    ours, theirs = socket.socketpair()
    with (
        theirs,
        Wire(SocketStream(ours, timeout_s=1), timeout_s=1) as wire,
        pytest.raises(ConnectError, match="takes nothing"),
    ):
        wire.send(m.Hello(m.VERSION, bytes(32)))
        channel = wire.new_channel()
        wire.send(m.Store(channel, bytes(32), bytes(32), b"", m.MAX_CODE_BYTES, bytes(32)))
        for start in range(0, m.MAX_CODE_BYTES, m.MAX_DATA_BYTES):
            wire.send(m.Chunk(channel, start, bytes(m.MAX_DATA_BYTES)))
