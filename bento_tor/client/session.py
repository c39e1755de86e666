"""A session as its user sees it: input in, output out, and how it ended; whatever becomes of its connection.

Owns what must be known to go on after a connection broke: the offset of the output that was consumed, the input that
the box has not acknowledged, and the call itself until the box has said that it started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from bento_tor.client.inputs import Unacknowledged
from bento_tor.client.line import Line
from bento_tor.client.source import Call
from bento_tor.client.transport import Silent
from bento_tor.client.wire import Wire, refused
from bento_tor.errors import BentoError, ConnectError, LocalProtocolError, RemoteProtocolError, TorError
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import frames
from bento_tor.protocol import messages as m
from bento_tor.protocol.states import Role

# Output is acknowledged each time this much has been consumed: a fixed number, so that Acks tell nothing but volume.
_ACK_EVERY_UNITS = m.INITIAL_WINDOW // 4
# How far the box may be ahead of us. The first window of the protocol is small; a circuit with a round trip of a second
# carries no more than one window in it.
_WINDOW_UNITS = 4 * 1024 * 1024
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
# What `send_exactly` can make: one message, of more than 255 bytes (its frame then grows with it), in one frame.
MIN_EXACT_BYTES, MAX_EXACT_BYTES = 400, m.MAX_DATA_BYTES

# The last words of a connection that broke have reached the box by then, or never will. Later it is somebody else who
# has attached, with our token: to take the session back from him for what broke hours ago would be wrong.
_GHOST_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """Some bytes of a message; `end`: they are its last."""

    data: bytes
    end: bool


@dataclass(frozen=True)
class Begun:
    """What started a session: said again where the box's answer did not come. `first`: input that went with it."""

    invocation: bytes
    call: Call
    first: bytes | None = None

    def first_flight(self, channel: int, token: bytes) -> list[m.Message]:
        """Execute, Open and the first input."""
        first = [] if self.first is None else [m.Input(channel, 0, self.first, True, False)]
        return [*self.flight(channel, token), *first]

    def flight(self, channel: int, token: bytes, offset: int = 0) -> list[m.Message]:
        """Execute and Open. A session that runs already is not started again."""
        return [
            m.Execute(channel, self.invocation, token, self.call.name, self.call.arguments, self.call.onward),
            m.Open(channel, token, offset),
        ]


@dataclass
class Place:
    """Where a session is attached: a channel of one wire."""

    wire: Wire
    channel: int
    acked: int  # units of output that were acknowledged here, or came before
    eof_sent: bool = False


class Session:
    """A running or ended call. Leaving the context detaches; the session goes on.

    Where its connection breaks it comes back by itself (see `connect`), and no byte is lost or comes twice. Output is
    read by one thread; input may be sent by another."""

    def __init__(
        self,
        line: Line,
        wire: Wire,
        channel: int,
        token: bytes,
        *,
        offset: int = 0,
        maybe_begun: Begun | None = None,
        maybe_ticket: str | None = None,
        ghosts: int = 0,
    ) -> None:
        """As `Box.start` and `Box.attach` make it: the Open has been said on this channel."""
        self.token = token
        self.ticket = maybe_ticket or ""  # the token as people pass it on: with it, `attach` works on any machine
        self.offset = offset  # units of output consumed
        self.log = b""  # what the function printed last, once it has ended
        self.maybe_outcome: Outcome | None = None
        # Called with the offset that will be acknowledged: the place to note how far one has got.
        self.before_ack: Callable[[int], None] = lambda offset: None
        self.acks_ride = False  # Acks go with `send_exactly` only
        self.maybe_shutdown: bytes | None = None  # the shutdown token of the function that `Box.run` stored for it
        self._line = line
        self._place = Place(wire, channel, offset)
        self._maybe_begun = maybe_begun  # until Started has come
        self._unacknowledged = Unacknowledged()
        self._input = threading.Lock()
        self._input_state = threading.Lock()  # of `_unacknowledged`; never held while anything is sent
        self._mending = threading.Lock()
        self._attached = True
        # Connections that broke. The box may hear the last words of one late, after our new Open: it then believes that
        # the old one is the newest reader, and tells us that we are displaced, by ourselves.
        self._ghosts = ghosts
        self._ghosts_until = time.monotonic() + _GHOST_S
        if maybe_begun is not None and maybe_begun.first is not None:
            self._unacknowledged.add(maybe_begun.first, end=True, eof=False)

    @property
    def timeout_s(self) -> float:
        """How long each answer of the box is waited for."""
        return self._line.timeout_s

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.detach()

    def wait_attached(self) -> None:
        """Wait until the box has attached us. Raises Refused where it does not."""

        def wait(place: Place) -> None:
            deadline = time.monotonic() + self._line.timeout_s
            refusal = place.wire.wait_attached(place.channel, deadline)
            if refusal is not None and not self._took_back(place):
                self._leave()
                raise refused(refusal)

        self._again(wait)

    # --- output -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        """Messages of the function, until it ends. One that its end cut short comes as far as it got."""
        while (message := self.maybe_receive()) is not None:
            yield message

    def maybe_receive(self, *, timeout_s: float | None = None) -> bytes | None:
        """The next message; None where the function has ended. Raises Silent after `timeout_s`."""
        message: bytearray | None = None
        while (piece := self.maybe_piece(timeout_s=timeout_s)) is not None:
            message = bytearray() if message is None else message
            message += piece.data
            if piece.end:
                return bytes(message)
            if len(message) > _MAX_MESSAGE_BYTES:
                raise RemoteProtocolError(f"the function sent a message of more than {_MAX_MESSAGE_BYTES} bytes")
        return None if message is None else bytes(message)

    def maybe_piece(self, *, timeout_s: float | None = None) -> Piece | None:
        """The next bytes of output as they arrive; None where the function has ended.

        To ask for the next piece says that the one before is dealt with: only then is it acknowledged, and only
        then may the box forget it. Raises Silent where nothing comes for `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.maybe_outcome is None and self._attached:
            place, message = self._again(lambda place: self._next(place, deadline))
            match message:
                case m.Output() | m.Padding():
                    piece = self._maybe_new(message)
                    if piece is not None:
                        return piece
                case m.Ended():
                    self._end(message)
                case m.Refused():
                    if not self._took_back(place):
                        self._leave()
                        raise refused(message)
                case m.Started():
                    self._maybe_begun = None
                case _:
                    raise RemoteProtocolError(f"the box said {type(message).__name__} to a session")
        return None

    def wait(self) -> Outcome:
        """Read, and throw away, what is left of the output; how the function ended."""
        while self.maybe_piece() is not None:
            pass
        if self.maybe_outcome is None:
            raise ConnectError("the session was left before its end")
        return self.maybe_outcome

    def _next(self, place: Place, deadline: float | None) -> tuple[Place, m.Message]:
        received = self._consumed(place)
        if received - place.acked >= _ACK_EVERY_UNITS and not self.acks_ride:
            self.before_ack(received)
            place.acked = received
            place.wire.maybe_send(place.channel, _ack(place.channel, received))
        return place, place.wire.wait(place.channel, deadline=deadline, late=Silent)

    def _consumed(self, place: Place) -> int:
        """What may be acknowledged. On a wire that is new some of what we consumed may not have come once more yet."""
        return max(place.acked, min(self.offset, place.wire.received(place.channel)))

    def _maybe_new(self, message: m.Output | m.Padding) -> Piece | None:
        """What of it was not consumed yet. While one thread came back at an offset, another may have consumed more from
        the old wire: that comes once more, and is dropped here."""
        known = self.offset - message.offset
        units = len(message.data) + (isinstance(message, m.Output) and message.end)
        if known >= units:
            return None
        self.offset = message.offset + units
        if isinstance(message, m.Padding):
            return None
        return Piece(message.data[known:], message.end)

    # --- input ------------------------------------------------------------------------------------------------

    def send(self, data: bytes | str, *, timeout_s: float | None = None) -> bool:
        """Send one message to the function; waits while it takes no more, each time for `timeout_s`: then it raises
        ConnectError. False: it has ended, and got not all."""
        return self.put(data.encode() if isinstance(data, str) else data, end=True, eof=False, timeout_s=timeout_s)

    def finish(self) -> None:
        """There will be no more input: the function's api.recv() raises EOFError from here on."""
        self.put(b"", end=False, eof=True)

    def send_exactly(self, frame_bytes: int, make: Callable[[int], bytes]) -> bool:
        """Send so many bytes (MIN_EXACT_BYTES to MAX_EXACT_BYTES), frames and all, in one write: an Ack of what was
        consumed, and one message, which `make` makes of the length that it is told. False: the function has ended.

        For who sets `acks_ride` before he reads: then nothing but this acknowledges, until he takes that back."""
        if not MIN_EXACT_BYTES <= frame_bytes <= MAX_EXACT_BYTES:
            raise LocalProtocolError(f"{frame_bytes} bytes in one write, not {MIN_EXACT_BYTES} to {MAX_EXACT_BYTES}")
        with self._input:
            while True:
                # With its frames it is more than the message: more window than it takes.
                place, window = self._again(lambda place: (place, place.wire.wait_window(place.channel, frame_bytes)))
                if window:
                    break
                if not self._took_back(place):
                    return False
            ack = _ack(place.channel, self._consumed(place))
            empty = m.Input(place.channel, place.wire.next_offset(place.channel), b"", True, False)
            # A length of more than 255 takes a byte more than that of nothing.
            room = frame_bytes - len(frames.encode_flight([ack, empty], Role.CLIENT)) - 1
            self._note(make(room), end=True, eof=False)
            return self._say_all((place, ack))

    def put(self, data: bytes, *, end: bool, eof: bool, timeout_s: float | None = None) -> bool:
        """A part of a message, where it is not whole yet: `end` closes it, `eof` the input. The rest as `send`."""
        with self._input:
            if self._unacknowledged.eof:
                raise LocalProtocolError("input after its end was said")
            left = memoryview(data)
            last = False
            while not last:
                deadline = None if timeout_s is None else time.monotonic() + timeout_s
                place, window = self._again(partial(_window, deadline))
                if not window:
                    if self._took_back(place):
                        continue
                    return False
                part = bytes(left[: min(window, m.MAX_DATA_BYTES)])
                left = left[len(part) :]
                # The end of a message takes a unit of the window too.
                last = not left and (not end or len(part) < window)
                if part or last:
                    self._note(part, end=end and last, eof=eof and last)
                    if not self._say_all():
                        return False
            return True

    def _say_all(self, riding: tuple[Place, m.Ack] | None = None) -> bool:
        """Send what is noted, with an Ack where its place is still ours. False: the function has ended."""
        while True:
            place, done = self._again(lambda place: (place, self._pump(place, riding)))
            if done or not self._took_back(place):
                return done

    def _note(self, part: bytes, *, end: bool, eof: bool) -> None:
        place = self._place
        begin = place.wire.next_offset(place.channel)
        with self._input_state:
            self._unacknowledged.begin(begin)
            self._unacknowledged.add(part, end=end, eof=eof)

    def _pump(self, place: Place, riding: tuple[Place, m.Ack] | None = None) -> bool:
        """Send all input that has not gone over this wire. False: the function has ended.

        Used by the one thread that sends input, or by the one that comes back, before others see its new place."""
        while (said := self._maybe_unsent(place)) is not None:
            place.eof_sent = said.eof
            flight: list[m.Message] = [said]
            if riding is not None and riding[0] is place:
                place.acked = riding[1].received
                flight, riding = [riding[1], said], None
            if not place.wire.maybe_send(place.channel, *flight):
                return False
        return not place.wire.is_over(place.channel)

    def _maybe_unsent(self, place: Place) -> m.Input | None:
        if place.eof_sent:
            return None
        offset = place.wire.next_offset(place.channel)
        with self._input_state:
            self._unacknowledged.forget(place.wire.acknowledged(place.channel))
            try:
                part = self._unacknowledged.maybe_from(offset)
            except LookupError as why:
                if place.wire.is_over(place.channel):
                    return None
                raise RemoteProtocolError("the box has lost input that it had acknowledged") from why
        return None if part is None else m.Input(place.channel, part.offset, part.data, part.end, part.eof)

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Stop the function now. Its outcome still comes, by `wait`."""
        self._again(lambda place: place.wire.maybe_send(place.channel, m.End(place.channel)))

    def detach(self) -> None:
        """Leave it running. What was consumed is acknowledged, so the box need not keep it."""
        if not self._attached:
            return
        place = self._place
        # A connection that broke has detached us too; nobody comes back only to say so.
        with suppress(ConnectError, TorError):
            ack = _ack(place.channel, self._consumed(place))
            if place.wire.maybe_send(place.channel, ack, m.Close(place.channel)):
                deadline = time.monotonic() + self._line.timeout_s
                while not isinstance(place.wire.wait(place.channel, deadline=deadline), m.Gone | m.Ended | m.Refused):
                    pass
        self._leave()

    def _end(self, ended: m.Ended) -> None:
        # The end is one unit of the stream: with this Ack the box knows that nothing need be kept.
        place = self._place
        with suppress(ConnectError, TorError):
            place.wire.maybe_send(place.channel, _ack(place.channel, place.wire.received(place.channel)))
        self.maybe_outcome = Outcome.parse(ended.outcome, ended.detail)
        self.log = ended.log
        self._leave()

    def _leave(self) -> None:
        self._attached = False
        self._place.wire.forget(self._place.channel)

    # --- coming back ------------------------------------------------------------------------------------------

    def _again(self, work: Callable[[Place], T]) -> T:
        """Do `work` where we are attached, and again after coming back, for as long as connections break under it."""
        while True:
            place = self._place
            try:
                return work(place)
            except (ConnectError, TorError) as error:
                self._come_back(place, error)

    def _took_back(self, place: Place) -> bool:
        """Attach once more where we were displaced by what is left of ourselves. False: it was somebody else."""
        refusal = place.wire.maybe_refusal(place.channel)
        if refusal is None or refusal.code is not m.Code.DISPLACED:
            return False
        with self._mending:
            if self._place is place:
                if not (self._ghosts and self._attached) or time.monotonic() >= self._ghosts_until:
                    return False
                self._ghosts -= 1
                self._reattach(place, None)
            return True

    def _come_back(self, place: Place, error: BentoError) -> None:
        with self._mending:
            self._reattach(place, error)

    def _reattach(self, place: Place, error: BentoError | None) -> None:
        """Attach anew, over the next wire if this one broke by `error`."""
        wire = place.wire
        while self._place is place:
            if error is not None:
                if not self._attached:
                    raise error
                wire = self._line.come_back(wire, error)
                self._ghosts += 1
                self._ghosts_until = time.monotonic() + _GHOST_S
            try:
                self._place = self._attach(wire)
            except (ConnectError, TorError) as again:
                error = again

    def _attach(self, wire: Wire) -> Place:
        """Attach where the output stopped, and say again what input the box has not got."""
        place = Place(wire, wire.new_channel(), self.offset)
        if self._maybe_begun is not None:
            flight = self._maybe_begun.flight(place.channel, self.token, place.acked)
        else:
            flight = [m.Open(place.channel, self.token, place.acked)]
        self._line.fly(wire, flight)
        refusal = wire.wait_attached(place.channel, time.monotonic() + self._line.timeout_s)
        if refusal is not None and refusal.code is m.Code.DISPLACED and self._ghosts:
            self._ghosts -= 1
            return self._attach(wire)
        if refusal is not None:
            self._leave()
            raise refused(refusal)
        self._pump(place)
        return place


def _ack(channel: int, received: int) -> m.Ack:
    return m.Ack(channel, received, received + _WINDOW_UNITS)


def _window(deadline: float | None, place: Place) -> tuple[Place, int]:
    return place, place.wire.wait_window(place.channel, deadline=deadline)
