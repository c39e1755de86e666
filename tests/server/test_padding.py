"""The arithmetic of `api.pad_to`, byte by byte against the real encoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import Role
from bento_tor.protocol.frames import encode
from bento_tor.server import padding
from bento_tor.server.padding import Promise

EDGES = [0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32]
CHANNELS = st.integers(1, 300) | st.just(m.MAX_CHANNEL)
OFFSETS = st.integers(0, 1 << 40) | st.sampled_from(EDGES)


def real_bytes(channel: int, offset: int, length: int) -> int:
    return len(encode(m.Padding(channel, offset, bytes(length)), Role.BOX))


@given(CHANNELS, OFFSETS, st.integers(0, m.MAX_DATA_BYTES) | st.sampled_from([255, 256, 65_535, 65_536]))
def test_a_frame_takes_what_it_is_said_to_take(channel: int, offset: int, length: int) -> None:
    assert padding.frame_bytes(channel, offset, length) == real_bytes(channel, offset, length)


def fill(sent: int, last: int, multiple: int, channel: int, offset: int, units: list[int]) -> tuple[int, int]:
    """What is sent in all, and in how many frames, where the peer takes so many units at a time."""
    frames, turn = 0, 0
    gap = padding.gap_bytes(sent, last, multiple)
    while gap := padding.reachable(gap, multiple, channel, offset):
        room = units[turn % len(units)]
        turn += 1
        if length := padding.next_length(gap, channel, offset, min(room, m.MAX_DATA_BYTES)):
            taken = real_bytes(channel, offset, length)
            sent, offset, gap, frames = sent + taken, offset + length, gap - taken, frames + 1
        assert turn < 100_000, "it never comes to an end"
    return sent + last, frames


@given(
    st.integers(0, 1 << 22),
    st.integers(20, 13_000),
    st.integers(1, 600) | st.integers(1, 300_000),
    CHANNELS,
    OFFSETS,
    st.lists(st.integers(1, 70_000), max_size=4).map(lambda units: [*units, 200]),
)
def test_every_gap_is_filled_exactly(sent, last, multiple, channel, offset, units) -> None:
    total, _ = fill(sent, last, multiple, channel, offset, units)
    assert total % multiple == 0
    least = padding.frame_bytes(channel, offset, 1)
    assert total - sent - last < multiple + least, "no more than it takes"


def test_every_gap_of_one_multiple_is_filled_with_few_frames() -> None:
    for multiple in (1, 2, 29, 30, 255, 256, 257, 300, 65_536, 66_000):
        for sent in range(0, multiple, 1 if multiple < 1000 else 37):
            total, frames = fill(sent, 100, multiple, 1, 0, [1 << 20])
            assert total % multiple == 0 and frames <= 3, (multiple, sent)


def test_without_a_promise_nothing_is_missing() -> None:
    assert padding.gap_bytes(12_345, 6, 0) == padding.reachable(0, 0, 1, 0) == 0


@pytest.mark.parametrize(
    ("release_s", "ended_at", "leaves_at"),
    [(5.0, 100.2, 105.0), (5.0, 105.0, 105.0), (5.0, 105.01, 110.0), (2.5, 109.9, 110.0), (0.0, 100.2, 100.2)],
)
def test_what_is_held_leaves_at_the_next_multiple_of_the_time_since_the_start(release_s, ended_at, leaves_at) -> None:
    promise = Promise(started_at=100.0)
    assert not promise.holds and promise.maybe_let_go(101.0) is None, "nothing was asked for"
    promise.make(1000, release_s)
    assert promise.holds
    assert promise.maybe_let_go(ended_at) == pytest.approx(leaves_at)
    assert promise.maybe_let_go(ended_at + 1) is None, "once"
    assert promise.holds, "its time is still to come"
    promise.left = True
    assert not promise.holds
