"""The output of one session between the function and its readers: a stream with offsets, kept until acknowledged.

Pure. What is too much for memory leaves it as bundles, oldest first, to be kept elsewhere: first comes what is there,
then what is here. Offsets are in units, as on the wire: a byte is one, the end of a message is one. So `maybe_read`
after a resume gives exactly what was not acknowledged, an empty message included.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

# What a piece costs in memory beside its bytes. Without it a function that sends a million one-byte messages
# would take a hundred times the memory that the cap says.
PIECE_COST_BYTES = 256
# A piece in a bundle: length of its data, padding, whether it is the end of a message. After the last one: zeros.
_PIECE = struct.Struct("!IQB")
_IS_PIECE, _IS_END = 1, 2
# Read back, a bundle is pieces again, and they must cost no more than the block that they were in.
_BUNDLE_PIECES = 256
_ZEROS = bytes(64 * 1024)

R = TypeVar("R")


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


@dataclass(slots=True)
class Tally:
    """Bytes in memory, of many outputs together."""

    total: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """The oldest pieces in memory, packed, to be kept elsewhere."""

    offset: int
    stop: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Block(Generic[R]):
    """Units that are kept elsewhere; `ref` tells where."""

    offset: int
    stop: int
    ref: R
    cost_bytes: int


class Output(Generic[R]):
    """What a function sent and nobody has acknowledged yet. `R`: how a place elsewhere is named."""

    def __init__(self, tally: Tally | None = None) -> None:
        self._pieces: list[Piece] = []
        self._first = 0  # pieces before it are forgotten
        self._blocks: list[Block[R]] = []
        self._loaded: tuple[Block[R], list[Piece]] | None = None
        self._tally = tally or Tally()
        self.base = 0  # the oldest offset still kept
        self.stop = 0  # the offset after the newest unit
        self.cost_bytes = 0  # what it takes in memory, about
        self.away_bytes = 0  # what it takes elsewhere
        # Told of each place elsewhere that is not needed any more.
        self.on_free: Callable[[R], None] = lambda ref: None

    @property
    def kept_bytes(self) -> int:
        """What it takes, here and elsewhere."""
        return self.cost_bytes + self.away_bytes

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
            self._cost(len(piece.data) + PIECE_COST_BYTES)

    def forget(self, received: int) -> None:
        """Drop everything before `received`, the reader's Ack. Never beyond what there is."""
        self.base = min(max(self.base, received), self.stop)
        while self._blocks and self._blocks[0].stop <= self.base:
            self._free(self._blocks.pop(0))
        if self._loaded is not None and self._loaded[0].stop <= self.base:
            self._unload()
        self._drop_pieces(self.base)

    def clear(self) -> None:
        """Drop everything: nobody will read it."""
        self.forget(self.stop)

    def share(self, tally: Tally) -> None:
        """Count in `tally` from now on."""
        self._tally.total -= self.cost_bytes
        self._tally = tally
        self._tally.total += self.cost_bytes

    def maybe_read(self, offset: int, max_units: int, max_bytes: int) -> Piece | None:
        """The next piece from `offset` on, at most so many units and bytes; None where there is none yet, or it has to
        be loaded first (`maybe_block`). `offset` must not lie before `base`."""
        pieces, first = self._pieces, self._first
        if self._blocks and offset < self._blocks[-1].stop:
            if self._loaded is None or not self._loaded[0].offset <= offset < self._loaded[0].stop:
                return None
            pieces, first = self._loaded[1], 0
        at = bisect_right(pieces, offset, lo=first, key=lambda piece: piece.stop)
        return _cut(pieces[at], offset, max_units, max_bytes) if at < len(pieces) else None

    # --- elsewhere --------------------------------------------------------------------------------------------

    def maybe_bundle(self, max_bytes: int) -> Bundle | None:
        """The oldest units in memory, packed into at most so many bytes; None where there are none.

        They stay here until `sent_away` says that they are kept elsewhere."""
        packed = bytearray()
        start = stop = max(self.base, self._blocks[-1].stop if self._blocks else 0)
        for piece in self._pieces[self._first : self._first + _BUNDLE_PIECES]:
            room = max_bytes - len(packed) - _PIECE.size
            data = piece.data[stop - piece.offset :]
            if room < min(1, len(data)):
                break
            end = piece.end and len(data) <= room
            padding = piece.stop - stop if piece.padding else 0
            packed += _PIECE.pack(min(len(data), room), padding, _IS_PIECE | _IS_END * end) + data[:room]
            stop += padding or min(len(data), room) + end
            if stop < piece.stop:
                break
        return Bundle(start, stop, bytes(packed)) if packed else None

    def sent_away(self, bundle: Bundle, ref: R, cost_bytes: int) -> None:
        """A bundle is kept elsewhere; unless it has been acknowledged meanwhile."""
        block = Block(bundle.offset, bundle.stop, ref, cost_bytes)
        self.away_bytes += cost_bytes
        if block.stop <= self.base:
            self._free(block)
            return
        self._blocks.append(block)
        self._drop_pieces(block.stop)

    def maybe_block(self, offset: int) -> Block[R] | None:
        """What has to be loaded before `offset` can be read; None where nothing has."""
        at = bisect_right(self._blocks, offset, key=lambda block: block.stop)
        if at == len(self._blocks) or (self._loaded is not None and self._loaded[0] is self._blocks[at]):
            return None
        return self._blocks[at]

    def loaded(self, block: Block[R], data: bytes) -> None:
        """Here is what was kept elsewhere. One block at a time is here again."""
        self._unload()
        if block.stop > self.base:
            self._loaded = (block, _unpack(data, block.offset))
            self._cost(block.cost_bytes)

    def _unload(self) -> None:
        if self._loaded is not None:
            self._cost(-self._loaded[0].cost_bytes)
            self._loaded = None

    def _free(self, block: Block[R]) -> None:
        self.away_bytes -= block.cost_bytes
        self.on_free(block.ref)

    def _drop_pieces(self, before: int) -> None:
        while self._first < len(self._pieces) and self._pieces[self._first].stop <= before:
            self._cost(-len(self._pieces[self._first].data) - PIECE_COST_BYTES)
            self._first += 1
        if self._first > 64 and self._first * 2 > len(self._pieces):
            del self._pieces[: self._first]
            self._first = 0

    def _cost(self, more: int) -> None:
        self.cost_bytes += more
        self._tally.total += more


def _unpack(data: bytes, offset: int) -> list[Piece]:
    """The pieces of a bundle, whatever it was padded with zeros to."""
    pieces, at = [], 0
    while at + _PIECE.size <= len(data):
        length, padding, flags = _PIECE.unpack_from(data, at)
        if not flags & _IS_PIECE:
            break
        at += _PIECE.size
        pieces.append(Piece(offset, data[at : at + length], bool(flags & _IS_END), padding))
        at += length
        offset = pieces[-1].stop
    return pieces


def _cut(piece: Piece, offset: int, max_units: int, max_bytes: int) -> Piece | None:
    skip = offset - piece.offset
    if piece.padding:
        length = min(piece.padding - skip, max_units, max_bytes, len(_ZEROS))
        # One block of zeros for all who read: 64 KiB for each waiting reader would be a way to fill the memory.
        return Piece(offset, _ZEROS[:length], False, length) if length else None
    data = piece.data[skip : skip + min(max_units, max_bytes)]
    whole = skip + len(data) == len(piece.data)
    end = piece.end and whole and len(data) < max_units
    if not data and not end:
        return None
    return Piece(offset, data, end)
