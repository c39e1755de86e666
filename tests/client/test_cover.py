"""The client's side of a cover: how a pace is cut into slots, and functions that do not keep to it."""

from __future__ import annotations

import struct
import threading

import pytest

from bento_tor.client import parse
from bento_tor.client.cover import END, ERROR, FETCH, SLOT_S, Cover, Pace
from bento_tor.client.memory import MemoryBox, MemorySession
from bento_tor.errors import ConfigError, LocalProtocolError, RemoteProtocolError

HEADER = struct.Struct("!BH")
SOURCE = parse("cover", "def cover(rate, seconds, jitter): ...")
PACE = Pace.of(9960, 1.0)


@pytest.mark.parametrize(
    ("rate", "cells"), [(1, 1), (9960, 1), (9961, 1), (9980, 2), (19920, 2), (20000, 3), (128 * 9960, 128)]
)
def test_a_slot_is_whole_cells_of_tors_and_never_slower_than_asked(rate: float, cells: int) -> None:
    pace = Pace.of(rate, 10)
    assert (pace.cells, pace.slots) == (cells, 200)
    assert pace.rate == cells * 498 / SLOT_S and pace.rate >= rate - 1 / SLOT_S


@pytest.mark.parametrize("wrong", [(0, 1, 0), (-5, 1, 0), (1e7, 1, 0), (1, 0, 0), (1, 1e9, 0), (1, 1, 2), (1, 1, -1)])
def test_a_pace_that_cannot_be_kept_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError):
        Pace.of(*wrong)


def test_all_covers_of_a_pace_are_asked_for_in_the_same_bytes() -> None:
    fetching, idle = (PACE.asking(SOURCE, fetching=fetching) for fetching in (True, False))
    assert (fetching.manifest.egress, idle.manifest.egress) == ("exit", "none")  # as long as one another
    assert fetching.text == idle.text


def covered(function, *, pace: Pace = PACE, send: bytes = b"") -> tuple[list[bytes], Cover]:
    with MemoryBox({"cover": function}) as there, there.connect() as box:
        session = box.run(SOURCE, pace.call())
        with Cover(session, pace) as cover:
            if send:
                cover.send(send)
                cover.finish()
            return list(cover), cover


def cell(flags: int, data: bytes, room: int = PACE.slot_bytes - 22) -> bytes:
    return (HEADER.pack(flags, len(data)) + data).ljust(room, b"\0")


def test_every_slot_that_the_function_gets_is_of_one_size_and_holds_what_was_sent() -> None:
    slots: list[bytes] = []

    def keep(api: MemorySession, rate: float, seconds: float, jitter: float) -> None:
        assert (rate, seconds, jitter) == (9960.0, 1.0, 0.0)
        slots.extend(api.recv() for _ in range(PACE.slots))

    covered(keep, send=b"a" * 1000)
    # Where the Ack's numbers grow the message shrinks by as much.
    assert len(slots) == 20 and max(map(len, slots)) - min(map(len, slots)) <= 4
    opened = [(*HEADER.unpack_from(slot), slot) for slot in slots]
    assert b"".join(slot[3 : 3 + length] for _, length, slot in opened) == b"a" * 1000
    assert [flags for flags, _, _ in opened].count(END) == 1
    assert not any(slot[3 + length :].strip(b"\0") for _, length, slot in opened)


def test_what_comes_is_data_an_end_and_perhaps_an_error() -> None:
    def answer(api: MemorySession, *_: object) -> None:
        for said in (cell(0, b"one "), cell(0, b""), cell(0, b"two"), cell(END | ERROR, b"no\x1b[2J"), cell(0, b"")):
            api.send(said)

    data, cover = covered(answer)
    assert (data, cover.complete, cover.maybe_error) == ([b"one ", b"two"], True, "no\x1b[2J")


@pytest.mark.parametrize(
    "wrong",
    [b"", b"\0\0", b"\0\xff\xff" + bytes(400), b"\0\x01\xf0" + bytes(100), bytes(PACE.slot_bytes + 1), bytes(1 << 20)],
    ids=["empty", "no header", "more than is there", "one more than is there", "too long", "huge"],
)
def test_a_function_that_does_not_keep_to_it_is_left(wrong: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="does not keep to the cover"):
        covered(lambda api, *_: api.send(wrong))


def test_a_function_that_ends_early_ends_the_cover_and_whoever_waits_to_send() -> None:
    waiting = threading.Event()

    def leave(api: MemorySession, *_: object) -> None:
        waiting.wait(10)

    with MemoryBox({"cover": leave}) as there, there.connect() as box:
        pace = Pace.of(9960, 3600)
        session = box.run(SOURCE, pace.call())
        with Cover(session, pace) as cover:
            cover.send(bytes(2 << 20))
            sending = threading.Thread(target=cover.send, args=(b"more",))
            sending.start()
            waiting.set()
            assert list(cover) == []
        sending.join(timeout=10)
        assert not sending.is_alive() and cover.unsent_bytes


def test_what_one_write_cannot_be_is_refused() -> None:
    with MemoryBox({"cover": lambda api, *_: api.recv()}) as there, there.connect() as box:
        session = box.run(SOURCE, PACE.call())
        for size in (0, 399, 70_000):
            with pytest.raises(LocalProtocolError):
                session.send_exactly(size, bytes)
        session.end()


def test_a_url_is_said_in_the_slots() -> None:
    told: list[bytes] = []

    def keep(api: MemorySession, *_: object) -> None:
        told.extend(api.recv() for _ in range(4))

    with MemoryBox({"cover": keep}) as there, there.connect() as box:
        session = box.run(SOURCE, PACE.call())
        with Cover(session, PACE) as cover:
            cover.fetch("http://example.org/" + "x" * 500)
            assert list(cover) == []
    flags = [HEADER.unpack_from(slot)[0] for slot in told if HEADER.unpack_from(slot)[1]]
    assert flags == [FETCH, FETCH | END]
