"""What `api.pad_to` promises, and the arithmetic that keeps it. Pure.

At the end of a padded session all bytes that the box has sent on the reader's connection, from its Welcome to the last
byte of Ended, are a multiple of what the function asked for. The padding is counted in bytes of the wire, so it is cut
when it is sent: just before Ended, in the same writes, as Padding messages that take offsets, window and Acks as output
does. Two peculiarities of msgpack: a frame of padding has a least size, and at 256 bytes of data its header grows, so
that one size cannot be had with one frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bento_tor.protocol.frames import HEADER_BYTES
from bento_tor.protocol.messages import INITIAL_WINDOW

# An Ack is due each time so much has been taken. Frames of a padded session end there, whatever is in them: else the
# place of an Ack among what the box sends would tell where a frame began, and with it where the output ended.
STEP_UNITS = INITIAL_WINDOW // 4
# Array of four, the name, and no more than so much data in the last frames: beyond it the header grows once more.
_NAME_BYTES = 1 + 1 + len("Padding")
_MAX_LAST_BYTES = 60_000
# What is left for later is never less: any gap of this size or more can be filled.
_LEAST_LEFT_BYTES = 64


@dataclass(slots=True)
class Promise:
    """Of one session. `started_at`: on the clock of the caller, as all times here. `left`: what was held has left."""

    multiple: int = 0
    started_at: float = 0.0
    left: bool = False
    _maybe_release_s: float | None = None
    _let_go: bool = False

    def make(self, multiple: int, maybe_release_s: float | None) -> None:
        """The function has asked for it; the last word counts."""
        self.multiple = multiple
        self._maybe_release_s = maybe_release_s

    @property
    def holds(self) -> bool:
        """Whether no output may leave yet."""
        return self._maybe_release_s is not None and not self.left

    def maybe_let_go(self, now: float) -> float | None:
        """There is nothing more to wait for: when it leaves. None where that is settled already, or nothing is held."""
        grid_s = self._maybe_release_s
        if grid_s is None or self._let_go:
            return None
        self._let_go = True
        if not grid_s:
            return now
        return self.started_at + max(1, math.ceil((now - self.started_at) / grid_s)) * grid_s


def gap_bytes(sent: int, last: int, multiple: int) -> int:
    """What is missing where so many bytes were sent, and so many will be the last ones."""
    return -(sent + last) % multiple if multiple else 0


def frame_bytes(channel: int, offset: int, length: int) -> int:
    """What a Padding message with so many bytes takes on the wire."""
    header = 2 if length < 1 << 8 else 3 if length < 1 << 16 else 5
    return HEADER_BYTES + _NAME_BYTES + _number_bytes(channel) + _number_bytes(offset) + header + length


def reachable(gap: int, multiple: int, channel: int, offset: int) -> int:
    """The gap, and so many multiples more that a frame fits into it; 0 stays 0."""
    least = frame_bytes(channel, offset, 1)
    return gap + max(0, -(-(least - gap) // multiple)) * multiple if gap else 0


def next_length(gap: int, channel: int, offset: int, units: int) -> int:
    """Bytes of the next Padding message, at most `units`, towards a `reachable` gap; 0: not with so few units.

    Either it fills the gap, or it leaves one that can be filled."""
    if (length := _maybe_exact(gap, channel, offset)) is not None and length <= units:
        return length
    length = min(units, gap)
    over = frame_bytes(channel, offset, length) + _LEAST_LEFT_BYTES - gap
    return max(0, length - max(0, over))


def _maybe_exact(gap: int, channel: int, offset: int) -> int | None:
    """The length of the one frame that takes exactly so much."""
    rough = gap - frame_bytes(channel, offset, 0)
    for length in (rough, rough - 1):
        if 0 < length <= _MAX_LAST_BYTES and frame_bytes(channel, offset, length) == gap:
            return length
    return None


def _number_bytes(number: int) -> int:
    for most, size in ((1 << 7, 1), (1 << 8, 2), (1 << 16, 3), (1 << 32, 5)):
        if number < most:
            return size
    return 9
