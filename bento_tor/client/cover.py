"""A session under cover: both ways, slot by slot, the same bytes, whether there is something to say or not.

The other end is functions/cover.py. What goes up is one write of one size in each slot, in which data takes the place
of zeros and the Ack rides along (`Session.send_exactly`); what comes down is one message of one size, made there. The
box's own Acks come on top, one for each 64 KiB of what goes up, whatever that was.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bento_tor.client.session import Session
from bento_tor.client.source import Call, Source, make_call
from bento_tor.errors import BentoError, ConfigError, RemoteProtocolError

SLOT_S = 0.05
TOR_CELL_BYTES = 498  # what a cell of tor's carries: a slot is whole cells
MAX_CELLS = 128
_HEADER = struct.Struct("!BH")
END, ERROR, FETCH = 1, 2, 4
_WAITING_BYTES = 1024 * 1024
# The session may last so much longer than the cover: it begins before, and says its last word after.
_MARGIN_S = 10


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

    def asking(self, source: Source, *, fetching: bool) -> Source:
        """The function with a manifest for this pace. `fetching`: with a way out for a page."""
        manifest = msgspec.structs.replace(
            source.manifest, seconds=int(self.seconds) + _MARGIN_S, egress="exit" if fetching else "none"
        )
        return msgspec.structs.replace(source, manifest=manifest)

    def call(self) -> Call:
        """What to run. The same for all covers of this pace: what they are for is said in their slots."""
        return make_call("cover", self.rate, self.seconds, self.jitter)


class Cover:
    """A started cover: iterate over it for the data that comes; the end of the iteration is the end of the cover.

    A context manager: leaving it ends the sending. Data may be sent from any thread."""

    def __init__(self, session: Session, pace: Pace) -> None:
        """`session` runs `pace.call()`, and nobody has read from it yet."""
        self.sent_bytes = self.received_bytes = 0
        self.maybe_error = ""  # what went wrong at the box, in its words
        self.complete = False  # the other side has said that all its data has come
        self._session = session
        self._pace = pace
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._flags = 0
        self._last = False
        self._stopped = False
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
        with self._changed:
            return len(self._waiting)

    def send(self, data: bytes) -> None:
        """Let `data` ride; waits while much waits already. Raises what has broken the session."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _WAITING_BYTES or self._stopped)
            if self._maybe_failure is not None:
                raise self._maybe_failure
            self._waiting += data

    def finish(self) -> None:
        """There will be no more data. The cover goes on."""
        with self._changed:
            self._last = True

    def fetch(self, url: str) -> None:
        """Let the box fetch a page: it comes as data, and ends with `complete`."""
        with self._changed:
            self._waiting += url.encode()
            self._flags, self._last = FETCH, True

    def __iter__(self) -> Iterator[bytes]:
        """Data as it comes, until the cover is over. Raises RemoteProtocolError for what no cover sends."""
        for message in self._session:
            flags, data = _opened(message, self._pace)
            self.complete = self.complete or bool(flags & END)
            if flags & ERROR:
                self.maybe_error = data.decode("utf-8", "replace")
            elif data:
                self.received_bytes += len(data)
                yield data
        if self._maybe_failure is not None:
            raise self._maybe_failure

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
        with self._changed:
            data = bytes(self._waiting[: room - _HEADER.size])
            del self._waiting[: len(data)]
            self.sent_bytes += len(data)
            flags = self._flags if data else 0
            if self._last and not self._waiting:
                flags, self._last = self._flags | END, False
            self._changed.notify_all()
        return (_HEADER.pack(flags, len(data)) + data).ljust(room, b"\0")


def _opened(message: bytes, pace: Pace) -> tuple[int, bytes]:
    """Flags and data of one slot. What is longer than a slot of ours was not asked for."""
    if _HEADER.size <= len(message) <= pace.slot_bytes:
        flags, length = _HEADER.unpack_from(message)
        if length <= len(message) - _HEADER.size:
            return flags, message[_HEADER.size : _HEADER.size + length]
    raise RemoteProtocolError("the function does not keep to the cover", hint="this box changes functions: leave it")
