"""The output of one session between the function and its readers: a stream with offsets, kept until acknowledged.

Pure. Offsets are in units, as on the wire: a byte is one, the end of a message is one. So `maybe_read` after a
resume gives exactly what was not acknowledged, an empty message included.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

# What a piece costs in memory beside its bytes. Without it a function that sends a million one-byte messages
# would take a hundred times the memory that the cap says.
PIECE_COST_BYTES = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Some units of the stream: bytes, then perhaps the end of a message. `padding` bytes mean nothing.

    Kept, padding is a length without `data`: a function asks for 4 GiB of it in thirteen bytes."""

    offset: int
    data: bytes
    end: bool
    padding: int = 0

    @property
    def stop(self) -> int:
        """The offset after its last unit."""
        return self.offset + (self.padding or len(self.data) + self.end)


class Output:
    """What a function sent and nobody has acknowledged yet."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._first = 0  # pieces before it are forgotten
        self.base = 0  # the oldest offset still kept
        self.stop = 0  # the offset after the newest unit
        self.cost_bytes = 0  # what it takes in memory, about

    def append(self, data: bytes, *, end: bool) -> None:
        """Add what the function sent."""
        self._append(Piece(self.stop, data, end))

    def append_padding(self, length: int) -> None:
        """Add `length` bytes that mean nothing; they are made when they are read."""
        self._append(Piece(self.stop, b"", False, length))

    def _append(self, piece: Piece) -> None:
        if piece.stop > self.stop:
            self._pieces.append(piece)
            self.stop = piece.stop
            self.cost_bytes += len(piece.data) + PIECE_COST_BYTES

    def forget(self, received: int) -> None:
        """Drop everything before `received`, the reader's Ack. Never beyond what there is."""
        self.base = min(max(self.base, received), self.stop)
        while self._first < len(self._pieces) and self._pieces[self._first].stop <= self.base:
            self.cost_bytes -= len(self._pieces[self._first].data) + PIECE_COST_BYTES
            self._first += 1
        if self._first > 64 and self._first * 2 > len(self._pieces):
            del self._pieces[: self._first]
            self._first = 0

    def maybe_read(self, offset: int, max_units: int, max_bytes: int) -> Piece | None:
        """The next piece from `offset` on, at most so many units and bytes; None where there is none yet.

        `offset` must not lie before `base`."""
        at = bisect_right(self._pieces, offset, lo=self._first, key=lambda piece: piece.stop)
        return _cut(self._pieces[at], offset, max_units, max_bytes) if at < len(self._pieces) else None


def _cut(piece: Piece, offset: int, max_units: int, max_bytes: int) -> Piece | None:
    skip = offset - piece.offset
    if piece.padding:
        length = min(piece.padding - skip, max_units, max_bytes)
        return Piece(offset, bytes(length), False, length) if length else None
    data = piece.data[skip : skip + min(max_units, max_bytes)]
    whole = skip + len(data) == len(piece.data)
    end = piece.end and whole and len(data) < max_units
    if not data and not end:
        return None
    return Piece(offset, data, end)
