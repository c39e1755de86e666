"""A session as its user sees it: input in, output out, and how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bento_tor.client.wire import Wire, refused
from bento_tor.errors import ConnectError, RemoteProtocolError
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import messages as m

# Output is acknowledged each time this much has been consumed: a fixed number, so that Acks tell nothing but volume.
_ACK_EVERY_UNITS = m.INITIAL_WINDOW // 4
# How far the box may be ahead of us. The first window of the protocol is small; a circuit with a round trip of a second
# carries no more than one window in it.
_WINDOW_UNITS = 4 * 1024 * 1024
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024


_SILENT = ("nothing came from the function in this time", "it still runs; --timeout waits longer")


@dataclass(frozen=True)
class Piece:
    """Some bytes of a message; `end`: they are its last."""

    data: bytes
    end: bool


class Session:
    """A running or ended call, attached on one connection. Leaving the context detaches; the session goes on.

    Output is read by one thread; input may be sent by another."""

    def __init__(self, wire: Wire, channel: int, token: bytes, *, offset: int = 0) -> None:
        self.token = token
        self.offset = offset  # units of output consumed
        self.log = b""  # what the function printed last, once it has ended
        self.maybe_outcome: Outcome | None = None
        # Called with the offset that will be acknowledged: the place to note how far one has got.
        self.before_ack: Callable[[int], None] = lambda offset: None
        self.maybe_shutdown: bytes | None = None  # the shutdown token of the function that `Box.run` stored for it
        self._wire = wire
        self._channel = channel
        self._acked = offset
        self._input = threading.Lock()
        self._attached = True

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.detach()

    def wait_attached(self) -> None:
        """Wait until the box has attached us. Raises Refused where it does not."""
        deadline = time.monotonic() + self._wire.timeout_s
        refusal = self._wire.wait_attached(self._channel, deadline)
        if refusal is not None:
            self._leave()
            raise refused(refusal)

    # --- output -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        """Messages of the function, until it ends. One that its end cut short comes as far as it got."""
        while (message := self.maybe_receive()) is not None:
            yield message

    def maybe_receive(self, *, timeout_s: float | None = None) -> bytes | None:
        """The next message; None where the function has ended. Raises ConnectError after `timeout_s`."""
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
        then may the box forget it. Raises ConnectError where nothing comes for `timeout_s`."""
        self._acknowledge()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.maybe_outcome is None and self._attached:
            message = self._wire.wait(self._channel, deadline=deadline, late=_SILENT)
            match message:
                case m.Output():
                    self.offset += len(message.data) + message.end
                    return Piece(message.data, message.end)
                case m.Padding():
                    self.offset += len(message.data)
                    self._acknowledge()
                case m.Ended():
                    self._end(message)
                case m.Refused():
                    self._leave()
                    raise refused(message)
                case m.Started():
                    pass
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

    # --- input ------------------------------------------------------------------------------------------------

    def send(self, data: bytes | str) -> bool:
        """Send one message to the function; waits while it takes no more. False: it has ended, and got not all."""
        return self._send(data.encode() if isinstance(data, str) else data, end=True, eof=False)

    def finish(self) -> None:
        """There will be no more input: the function's api.recv() raises EOFError from here on."""
        self._send(b"", end=False, eof=True)

    def _send(self, data: bytes, *, end: bool, eof: bool) -> bool:
        with self._input:
            left = memoryview(data)
            last = False
            while not last and (window := self._wire.wait_window(self._channel)):
                part = bytes(left[: min(window, m.MAX_DATA_BYTES)])
                left = left[len(part) :]
                # The end of a message takes a unit of the window too.
                last = not left and (not end or len(part) < window)
                if part or last:
                    offset = self._wire.next_offset(self._channel)
                    said = m.Input(self._channel, offset, part, end and last, eof and last)
                    if not self._wire.maybe_send(self._channel, said):
                        return False
            return last

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Stop the function now. Its outcome still comes, by `wait`."""
        self._wire.maybe_send(self._channel, m.End(self._channel))

    def detach(self) -> None:
        """Leave it running. What was consumed is acknowledged, so the box need not keep it."""
        if not self._attached:
            return
        if self._wire.maybe_send(self._channel, self._ack(), m.Close(self._channel)):
            deadline = time.monotonic() + self._wire.timeout_s
            while not isinstance(self._wire.wait(self._channel, deadline=deadline), m.Gone | m.Ended | m.Refused):
                pass
        self._leave()

    def _acknowledge(self) -> None:
        if self.offset - self._acked >= _ACK_EVERY_UNITS:
            self.before_ack(self.offset)
            self._wire.maybe_send(self._channel, self._ack())

    def _ack(self) -> m.Ack:
        self._acked = self.offset
        return m.Ack(self._channel, self.offset, self.offset + _WINDOW_UNITS)

    def _end(self, ended: m.Ended) -> None:
        # The end is one unit of the stream: with this Ack the box knows that nothing need be kept.
        last_ack = m.Ack(self._channel, self.offset + 1, self.offset + 1 + _WINDOW_UNITS)
        with suppress(ConnectError):
            self._wire.maybe_send(self._channel, last_ack)
        self.maybe_outcome = Outcome.parse(ended.outcome, ended.detail)
        self.log = ended.log
        self._leave()

    def _leave(self) -> None:
        self._attached = False
        self._wire.forget(self._channel)
