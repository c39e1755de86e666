"""Input that a box has not acknowledged yet, by offset: what must be said again after a connection broke. Pure.

Bounded by the box's window: nothing is added that may not be sent.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Some units of the input: bytes, then perhaps the end of a message. `eof`: they are the last."""

    offset: int
    data: bytes
    end: bool
    eof: bool

    @property
    def stop(self) -> int:
        """The offset after its last unit."""
        return self.offset + len(self.data) + self.end

    def cut(self, offset: int) -> Part:
        """What is left of it from `offset` on."""
        skip = max(0, offset - self.offset)
        end = self.end and skip <= len(self.data)
        return Part(self.offset + skip, self.data[skip:], end, self.eof)


class Unacknowledged:
    """The newest part of a session's input."""

    def __init__(self) -> None:
        self.stop = 0  # the offset after the newest unit
        self.eof = False
        self._parts: deque[Part] = deque()

    def begin(self, offset: int) -> None:
        """The box has this much; where that is more than we know of, others have sent it."""
        if offset > self.stop:
            self._parts.clear()
            self.stop = offset

    def add(self, data: bytes, *, end: bool, eof: bool) -> None:
        """Add what is sent next."""
        part = Part(self.stop, data, end, eof)
        self._parts.append(part)
        self.stop, self.eof = part.stop, eof

    def forget(self, received: int) -> None:
        """The box has everything before `received`. An eof is kept: it has no unit that an Ack could count."""
        while self._parts and self._parts[0].stop <= received and not self._parts[0].eof:
            self._parts.popleft()

    def maybe_from(self, offset: int) -> Part | None:
        """What is to be sent from `offset` on; None where there is nothing.

        Raises LookupError where `offset` lies before everything kept."""
        for part in self._parts:
            if offset < part.offset:
                break
            if offset < part.stop or part.eof:
                return part.cut(offset)
        if offset < self.stop:
            raise LookupError(offset)
        return None
