"""Boxes that break no rule of the protocol, and want the better of their client all the same."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from bento_tor.client import Retries, Stream, connect
from bento_tor.client import session as sessions
from bento_tor.client.memory import ADDRESS
from bento_tor.client.transport import MemoryStream
from bento_tor.errors import ConnectError, Refused, RemoteProtocolError
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role

DIGEST = b"d" * 32
MIB = 1024 * 1024


class HostileBox:
    """Attaches everybody, and says `first` to each Open. Counts the input that comes, and acknowledges none."""

    builds_circuits = True

    def __init__(self, *first: m.Message, then_hang_up: bool = False) -> None:
        self.opened = 0  # connections
        self.opens = 0  # messages of that name
        self.taken_bytes = 0
        self._first = first
        self._then_hang_up = then_hang_up
        self._maybe_to_input: m.Message | None = None

    def stay(self, *, to_input: m.Message) -> None:
        """Hang up no more, and say this to the first input."""
        self._maybe_to_input, self._then_hang_up = to_input, False

    def open(self) -> Stream:
        self.opened += 1
        ours, theirs = MemoryStream.pair(timeout_s=5.0)
        threading.Thread(target=self._serve, args=(ours,), daemon=True).start()
        return theirs

    def _serve(self, stream: MemoryStream) -> None:
        connection = Connection(Role.BOX)
        while True:
            try:
                connection.receive_data(stream.recv(MIB))
            except (TimeoutError, OSError):
                return
            while (event := connection.next_event()) is not NEED_DATA:
                match event:
                    case EndOfStream():
                        return
                    case m.Hello():
                        stream.send(connection.send(m.Welcome(m.VERSION, DIGEST)))
                    case m.Open():
                        self.opens += 1
                        if event.channel > 1:
                            continue  # one that comes back on the same connection waits for ever
                        hang_up = self._then_hang_up  # as it is before they can answer
                        stream.send(connection.send_many(self._first))
                        if hang_up:
                            stream.close()
                            return
                    case m.Input():
                        self.taken_bytes += len(event.data)
                        if self._maybe_to_input is not None:
                            stream.send(connection.send(self._maybe_to_input))
                            self._maybe_to_input = None


def test_input_that_a_box_takes_and_never_acknowledges_does_not_fill_our_memory() -> None:
    box = HostileBox(m.Ack(1, 0, 1 << 60))
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=5.0, retries=Retries(most=0)) as reached:
        session = reached.attach(b"t" * 32)

        def send() -> None:
            with pytest.raises(ConnectError):  # only our own hanging up ends it
                session.send(bytes(64 * MIB))

        sending = threading.Thread(target=send)
        sending.start()
        deadline = time.monotonic() + 20
        while box.taken_bytes < 4 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        sending.join(timeout=0.5)  # it would go on now
        assert sending.is_alive()
        kept = sum(len(part.data) for part in session._unacknowledged._parts)
        assert kept == box.taken_bytes == 4 * MIB
    sending.join()


def test_input_that_a_box_never_takes_is_waited_for_as_long_as_was_said() -> None:
    box = HostileBox(m.Ack(1, 0, 1000))
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=30.0, retries=Retries(most=0)) as reached:
        session = reached.attach(b"t" * 32)
        with pytest.raises(ConnectError, match="did not answer in time"):
            session.send(bytes(5000), timeout_s=0.3)


def test_a_box_that_hangs_up_on_purpose_gets_three_more_connections() -> None:
    box = HostileBox(m.Ack(1, 0, 1 << 20), then_hang_up=True)
    retries = Retries(first_wait_s=0.0)
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=5.0, retries=retries) as reached:
        session = reached.attach(b"t" * 32)
        for _ in range(3):  # who tries again gets no more of them
            with pytest.raises(ConnectError, match="3 reconnections"):
                session.maybe_receive()
    assert box.opened == 4


def test_a_box_that_says_displaced_again_and_again_is_believed() -> None:
    told = m.Refused(1, m.Code.DISPLACED, "another\x1b[2J")
    box = HostileBox(m.Ack(1, 0, 1 << 20), told)
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=5.0) as reached:
        session = reached.attach(b"t" * 32)
        with pytest.raises(Exception, match="refused"):
            session.maybe_receive()
    assert box.opened == 1


@pytest.mark.parametrize(
    "lie",
    [
        m.Ack(1, 1 << 61, 1 << 62),
        m.Ack(1, 0, 0),
    ],
)
def test_lies_about_what_was_received_raise_or_wait_and_nothing_else(lie: m.Ack) -> None:
    box = HostileBox(lie)
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=1.0, retries=Retries(most=0)) as reached:
        session = reached.attach(b"t" * 32)
        session.wait_attached()
        if lie.limit:
            assert session.send(b"hello")
        with pytest.raises((ConnectError, RemoteProtocolError)):
            session.maybe_receive(timeout_s=0.2)


@pytest.mark.parametrize("late", [False, True])
def test_a_session_is_taken_back_from_what_is_left_of_ourselves_and_not_from_others(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if late:
        monkeypatch.setattr(sessions, "_GHOST_S", 0.0)
    box = HostileBox(m.Ack(1, 0, 1 << 20), then_hang_up=True)
    with connect(ADDRESS, transport=box, policy_digest=DIGEST, timeout_s=5.0) as reached:
        session = reached.attach(b"t" * 32)
        session.wait_attached()
        box.stay(to_input=m.Refused(1, m.Code.DISPLACED, "another"))
        with suppress(Refused, ConnectError):
            session.send(b"hello")
        with pytest.raises((Refused, ConnectError)):
            session.maybe_receive(timeout_s=1.0)
    assert (box.opens, box.opened) == (2 if late else 3, 2)
