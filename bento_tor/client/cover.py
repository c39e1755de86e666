"""A session under cover: both ways, slot by slot, the same bytes, whether there is something to say or not.

The other end is functions/cover.py. What goes up is one write of one size in each slot, in which data takes the place
of zeros and the Ack rides along (`Session.send_exactly`); what comes down is one message of one size, made there. The
box's own Acks come on top, one for each 64 KiB of what goes up, whatever that was. Another function may run under it:
its text, its input, its output and how it ended ride in the slots.
"""

from __future__ import annotations

import json
import random
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bento_tor.client.session import Piece, Session
from bento_tor.client.source import Call, Source, make_call
from bento_tor.errors import BentoError, ConfigError, LocalProtocolError, RemoteProtocolError
from bento_tor.policy import manifest as manifests
from bento_tor.policy.outcome import Outcome

SLOT_S = 0.05
TOR_CELL_BYTES = 498  # what a cell of tor's carries: a slot is whole cells
MAX_CELLS = 128
_HEADER = struct.Struct("!BH")
# Flags of a record: the end of a message; no more of them; a function to run; what went wrong with it.
END, LAST, RUN, ERROR = 1, 2, 4, 8
_WAITING_BYTES = 1024 * 1024
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
# The session may last so much longer than the cover: it begins before, and says its last word after.
_MARGIN_S = 10
# The text that is uploaded and its manifest together are so long, or twice that and so on: whatever is to run.
_UPLOAD_BYTES = 16 * 1024


@dataclass(frozen=True)
class Pace:
    """What is seen from outside: `cells` each slot, for so many slots. `jitter`: the part of a slot left to chance."""

    cells: int
    slots: int
    jitter: float

    @classmethod
    def of(cls, rate: float, seconds: float, jitter: float = 0.0) -> Pace:
        """At least `rate` bytes a second each way: whole cells of Tor's. Raises ConfigError."""
        cells = max(1, -(-int(rate * SLOT_S) // TOR_CELL_BYTES))
        if rate <= 0 or cells > MAX_CELLS:
            most = int(MAX_CELLS * TOR_CELL_BYTES / SLOT_S)
            raise ConfigError(f"no rate of {rate:g} bytes a second can be kept", hint=f"up to {most}")
        if not 0 < seconds <= 7 * 86400 or not 0 <= jitter <= 1:
            raise ConfigError("a cover lasts up to a week, and its jitter is from 0 to 1")
        return cls(cells, max(1, round(seconds / SLOT_S)), jitter)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot, each way."""
        return self.cells * TOR_CELL_BYTES

    @property
    def rate(self) -> float:
        """Bytes a second, each way."""
        return self.slot_bytes / SLOT_S

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.slots * SLOT_S

    def asking(self, source: Source, inner: Source | None = None) -> Source:
        """`source` (functions/cover.py), with what `inner` asks for, which is to run under it; all as long as one
        another."""
        wanted = (inner or source).manifest
        manifest = msgspec.structs.replace(wanted, entry="cover", seconds=int(self.seconds) + _MARGIN_S)
        used = len(manifests.encode(manifest)) + len(source.text.encode()) + 1
        text = source.text + "#" * (-used % _UPLOAD_BYTES) + "\n"
        return msgspec.structs.replace(source, manifest=manifest, text=text)

    def call(self) -> Call:
        """What to run. The same for all covers of this pace: what they are for is said in their slots."""
        return make_call("cover", self.rate, self.seconds, self.jitter)


class Cover:
    """A started cover, used as a session is: send messages, and take those that come, until the cover is over.

    A context manager: leaving it ends the sending. Messages may be sent from any thread; one receives."""

    def __init__(self, session: Session, pace: Pace) -> None:
        """`session` runs `pace.call()`, and nobody has read from it yet."""
        self.complete = False  # the other side has said that there will be no more
        self._session = session
        self._pace = pace
        self._error = bytearray()  # what went wrong with the function under it
        self._came: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._records: deque[tuple[int, memoryview]] = deque()
        self._waiting_bytes = 0
        self._finished = self._stopped = False
        self._maybe_failure: BentoError | None = None
        session.acks_ride = True
        self._sender = threading.Thread(target=self._send_slots, name="cover", daemon=True)

    def __enter__(self) -> Cover:
        self._sender.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._sender.join(timeout=5.0)

    @property
    def unsent_bytes(self) -> int:
        """What still waits for a slot."""
        return self._waiting_bytes

    @property
    def offset(self) -> int:
        """As a session's; it says nothing about what rides."""
        return self._session.offset

    @property
    def log(self) -> bytes:
        """Nothing: how much was printed could be seen."""
        return b""

    def wait_attached(self) -> None:
        """Wait until the box has attached us. Raises Refused where it does not."""
        self._session.wait_attached()

    # --- up ---------------------------------------------------------------------------------------------------

    def run(self, source: Source, call: Call) -> None:
        """Let this function run under cover: the first thing to say."""
        wanted = {"source": source.text, "call": call.name, "arguments": call.arguments}
        self._put(RUN | END, json.dumps(wanted).encode())

    def send(self, data: bytes | str) -> bool:
        """Let one message ride; waits while much waits already. False: the cover is over."""
        return self._put(END, data.encode() if isinstance(data, str) else data)

    def finish(self) -> None:
        """There will be no more messages. The cover goes on."""
        self._finished = self._put(LAST, b"")

    def _put(self, flags: int, data: bytes) -> bool:
        with self._changed:
            if self._finished:
                raise LocalProtocolError("a message after the last")
            self._changed.wait_for(lambda: self._waiting_bytes < _WAITING_BYTES or self._stopped)
            if self._maybe_failure is not None:
                raise self._maybe_failure
            if self._stopped:
                return False
            self._records.append((flags, memoryview(data)))
            self._waiting_bytes += len(data)
            return True

    def _send_slots(self) -> None:
        chance = random.SystemRandom()
        begun = time.monotonic()
        try:
            # Until the function ends, a round trip after its seconds; a box that never ends it gets no more.
            for slot in range(self._pace.slots + int(_MARGIN_S / SLOT_S)):
                due = begun + (slot + chance.random() * self._pace.jitter) * SLOT_S
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, max(0.0, due - time.monotonic()))
                if self._stopped or not self._session.send_exactly(self._pace.slot_bytes, self._slot):
                    break
        except BentoError as why:
            self._maybe_failure = why
        finally:
            # Nobody waits for a slot that never comes; what is left to read is acknowledged as ever.
            self._session.acks_ride = False
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _slot(self, room: int) -> bytes:
        slot = bytearray()
        with self._changed:
            while self._records and room - len(slot) > _HEADER.size:
                flags, data = self._records.popleft()
                piece = data[: room - len(slot) - _HEADER.size]
                if len(piece) < len(data):
                    self._records.appendleft((flags, data[len(piece) :]))
                    flags &= RUN
                slot += _HEADER.pack(flags, len(piece)) + piece
                self._waiting_bytes -= len(piece)
            self._changed.notify_all()
        return bytes(slot).ljust(room, b"\0")

    # --- down -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        """Messages, until the cover is over."""
        message = bytearray()
        while (piece := self.maybe_piece()) is not None:
            message += piece.data
            if piece.end:
                yield bytes(message)
                message.clear()
            elif len(message) > _MAX_MESSAGE_BYTES:
                raise RemoteProtocolError(f"a message of more than {_MAX_MESSAGE_BYTES} bytes came")

    def maybe_piece(self) -> Piece | None:
        """The next bytes as they arrive; None where the cover is over. Raises RemoteProtocolError for what no cover
        sends, and what has broken the session."""
        while not self._came:
            message = self._session.maybe_receive()
            if message is None:
                if self._maybe_failure is not None:
                    raise self._maybe_failure
                return None
            for flags, data in _records(message, self._pace):
                self.complete = self.complete or bool(flags & LAST)
                if flags & ERROR:
                    self._error += data
                elif data or flags & END:
                    self._came.append(Piece(data, bool(flags & END)))
        return self._came.popleft()

    def wait(self) -> Outcome:
        """Read, and throw away, what is left; how the function under it ended, or the cover itself if that failed."""
        while self.maybe_piece() is not None:
            pass
        outcome = self._session.wait()
        if outcome.succeeded and self._error:
            return Outcome.raised(self._error.decode("utf-8", "replace"))
        return outcome


def _records(message: bytes, pace: Pace) -> Iterator[tuple[int, bytes]]:
    """Flags and data of what rides in one slot. What is no slot of ours was not asked for."""
    if len(message) > pace.slot_bytes:
        raise _wrong()
    at = 0
    while at + _HEADER.size <= len(message):
        flags, length = _HEADER.unpack_from(message, at)
        if not flags and not length:
            return
        at += _HEADER.size + length
        if at > len(message):
            raise _wrong()
        yield flags, message[at - length : at]


def _wrong() -> RemoteProtocolError:
    return RemoteProtocolError("the function does not keep to the cover", hint="this box changes functions: leave it")
