"""The client's side of a cover: how a pace is cut into slots, and functions that do not keep to it."""

from __future__ import annotations

import json
import struct
import threading

import pytest

from bento_tor.client import parse
from bento_tor.client.cover import END, ERROR, LAST, RUN, SLOT_S, Cover, Pace
from bento_tor.client.memory import MemoryBox, MemorySession
from bento_tor.client.source import make_call
from bento_tor.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from bento_tor.policy.manifest import encode

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


def test_all_covers_of_a_pace_are_asked_for_in_as_many_bytes() -> None:
    inner = parse(
        "f", f"{'x' * 5000} = 1\n# /// script\n# [tool.bento]\n# egress = 'exit'\n# hosts = ['a.example']\n# ///"
    )
    asked = [PACE.asking(SOURCE), PACE.asking(SOURCE, inner)]
    assert asked[1].manifest.hosts and asked[1].manifest.entry == "cover" and asked[1].manifest.egress == "exit"
    assert {len(each.text.encode()) + len(encode(each.manifest)) for each in asked} == {16 * 1024}
    assert all(each.text.startswith(SOURCE.text) for each in asked)


def opened(slot: bytes) -> list[tuple[int, bytes]]:
    """The records of a slot; what is behind them is zeros."""
    found, at = [], 0
    while at + 3 <= len(slot) and slot[at : at + 3] != b"\0\0\0":
        flags, length = HEADER.unpack_from(slot, at)
        at += 3 + length
        found.append((flags, slot[at - length : at]))
    assert not slot[at:].strip(b"\0")
    return found


def covered(function, *, pace: Pace = PACE, send: bytes = b"") -> tuple[list[bytes], Cover]:
    with MemoryBox({"cover": function}) as there, there.connect() as box:
        session = box.run(SOURCE, pace.call())
        with Cover(session, pace) as cover:
            if send:
                cover.send(send)
                cover.send(b"")
                cover.finish()
            return list(cover), cover


def slot(*records: tuple[int, bytes], room: int = PACE.slot_bytes - 22) -> bytes:
    return b"".join(HEADER.pack(flags, len(data)) + data for flags, data in records).ljust(room, b"\0")


def test_every_slot_that_the_function_gets_is_of_one_size_and_holds_what_was_sent() -> None:
    slots: list[bytes] = []

    def keep(api: MemorySession, rate: float, seconds: float, jitter: float) -> None:
        assert (rate, seconds, jitter) == (9960.0, 1.0, 0.0)
        slots.extend(api.recv() for _ in range(PACE.slots))

    covered(keep, send=b"a" * 1000)
    # Where the Ack's numbers grow the message shrinks by as much.
    assert len(slots) == 20 and max(map(len, slots)) - min(map(len, slots)) <= 4
    records = [record for each in slots for record in opened(each)]
    assert b"".join(data for _, data in records) == b"a" * 1000
    assert [flags for flags, data in records if flags] == [END, END, LAST] and records[-2:] == [(END, b""), (LAST, b"")]


def test_what_comes_is_messages_an_end_and_perhaps_an_error() -> None:
    def answer(api: MemorySession, *_: object) -> None:
        api.send(slot((0, b"one "), (END, b"and a half"), (END, b"")))
        api.send(slot())
        api.send(slot((END, b"two"), (END | LAST | ERROR, b"ValueError: no\x1b[2J")))
        api.send(slot())

    with MemoryBox({"cover": answer}) as there, there.connect() as box:
        session = box.run(SOURCE, PACE.call())
        with Cover(session, PACE) as cover:
            assert list(cover) == [b"one and a half", b"", b"two"] and cover.complete
            assert (cover.wait().word, cover.wait().detail) == ("raised", "ValueError: no\x1b[2J")


@pytest.mark.parametrize(
    "wrong",
    [b"\0\xff\xff" + bytes(400), b"\1\1\xf0" + bytes(100), bytes(PACE.slot_bytes + 1), bytes(1 << 20)],
    ids=["more than is there", "one more than is there", "too long", "huge"],
)
def test_a_function_that_does_not_keep_to_it_is_left(wrong: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="does not keep to the cover"):
        covered(lambda api, *_: api.send(wrong))


@pytest.mark.parametrize("odd", [b"", b"\0\0", b"\xff\0\0", b"\0\0\0\xff", slot((0xF0, b"")) * 1])
def test_what_is_nothing_is_nothing(odd: bytes) -> None:
    data, cover = covered(lambda api, *_: api.send(odd))
    assert data in ([], [b""]) and cover.wait().word in ("returned", "raised")


def test_a_function_that_ends_early_ends_the_cover_and_whoever_waits_to_send() -> None:
    waiting = threading.Event()

    def leave(api: MemorySession, *_: object) -> None:
        waiting.wait(10)

    with MemoryBox({"cover": leave}) as there, there.connect() as box:
        pace = Pace.of(9960, 3600)
        session = box.run(SOURCE, pace.call())
        with Cover(session, pace) as cover:
            assert cover.send(bytes(2 << 20))
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


def test_a_function_to_run_is_said_in_the_slots_and_so_is_all_that_it_hears() -> None:
    told: list[bytes] = []

    def keep(api: MemorySession, *_: object) -> None:
        told.extend(api.recv() for _ in range(8))

    inner = parse("f", "def f(a): return a  # " + "x" * 900)
    with MemoryBox({"cover": keep}) as there, there.connect() as box:
        session = box.run(SOURCE, PACE.call())
        with Cover(session, PACE) as cover:
            cover.run(inner, make_call("f", 5))
            cover.send("hello")
            cover.finish()
            with pytest.raises(LocalProtocolError):
                cover.send("more")
            assert list(cover) == []
            assert not cover.complete
    records = [record for each in told for record in opened(each)]
    assert [flags for flags, _ in records if not flags & RUN] == [END, LAST]
    wanted = json.loads(b"".join(data for flags, data in records if flags & RUN))
    assert wanted == {"source": inner.text, "call": "f", "arguments": "((5,), {})"}
    assert [flags for flags, _ in records if flags & RUN][-1] == RUN | END
