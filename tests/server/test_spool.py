"""Output on disk: comes back as it went, tells a disk's finder nothing, and stays within its bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bento_tor.server import spool as spool_module
from bento_tor.server.backlog import Backlog
from bento_tor.server.output import Tally
from bento_tor.server.spool import BLOCK_BYTES, SLOT_BYTES, Ref, Spoilt, Spool

MIB = 1024 * 1024
WORD = b"nobody may find this word on the disk"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path, 2 * MIB)
    yield made
    made.close()


def on_disk(spool: Spool) -> bytes:
    """All that is in the file, by its descriptor: it has no name."""
    descriptor = spool._file.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def test_a_block_comes_back_and_the_disk_tells_only_how_many_there_are(spool: Spool, tmp_path: Path) -> None:
    async def play() -> None:
        shelf = spool.shelf()
        first, second = await shelf.maybe_put(WORD * 1000), await shelf.maybe_put(b"")
        assert first is not None and second is not None
        found = on_disk(spool)
        assert len(found) == 2 * SLOT_BYTES and WORD[:8] not in found
        assert await shelf.get(first) == (WORD * 1000).ljust(BLOCK_BYTES, b"\0")
        assert await shelf.get(second) == bytes(BLOCK_BYTES)

    asyncio.run(play())
    assert list(tmp_path.iterdir()) == []


def test_equal_blocks_are_different_on_disk(spool: Spool) -> None:
    async def play() -> None:
        shelf, other = spool.shelf(), spool.shelf()
        for place in (shelf, shelf, other):
            assert await place.maybe_put(WORD) is not None
        found = on_disk(spool)
        assert len({found[at : at + SLOT_BYTES] for at in range(0, len(found), SLOT_BYTES)}) == 3

    asyncio.run(play())


def test_a_changed_or_foreign_block_is_no_output(spool: Spool) -> None:
    async def play() -> None:
        shelf, other = spool.shelf(), spool.shelf()
        ref = await shelf.maybe_put(WORD)
        foreign = await other.maybe_put(WORD)
        assert ref is not None and foreign is not None
        with pytest.raises(Spoilt):
            await shelf.get(foreign)
        with pytest.raises(Spoilt):
            await shelf.get(Ref(ref.slot, ref.number + 1))
        os.pwrite(spool._file.fileno(), b"x", ref.slot * SLOT_BYTES + 5)
        with pytest.raises(Spoilt):
            await shelf.get(ref)
        with pytest.raises(Spoilt):
            await shelf.get(Ref(999, 1))

    asyncio.run(play())


def test_a_full_spool_says_so_and_who_waits_is_told_when_it_is_not(spool: Spool) -> None:
    async def play() -> None:
        greedy, other = spool.shelf(), spool.shelf()
        while await greedy.maybe_put(WORD) is not None:
            pass
        assert spool.used_bytes == 2 * MIB and await other.maybe_put(WORD) is None
        told: list[str] = []
        other.when_free(lambda: told.append("free"))
        greedy.close()
        assert told == ["free"] and spool.used_bytes == 0
        assert await greedy.maybe_put(WORD) is None and spool.used_bytes == 0
        ref = await other.maybe_put(WORD)
        assert ref is not None and (await other.get(ref)).startswith(WORD)
        other.free(ref)
        other.free(ref)  # twice is once
        assert spool.used_bytes == 0

    asyncio.run(play())


def test_a_disk_that_fails_is_a_disk_without_room(spool: Spool) -> None:
    async def play() -> None:
        os.close(spool._file.fileno())
        shelf = spool.shelf()
        assert await shelf.maybe_put(WORD) is None and spool.used_bytes == 0
        os.dup2(os.open("/dev/null", os.O_RDWR), spool._file.fileno())

    asyncio.run(play())


async def fill(backlog: Backlog, messages: int) -> int:
    """Send until there is no room, or so many; how many went in."""
    for number in range(messages):
        if not await backlog.has_room():
            return number
        backlog.output.append(number.to_bytes(2, "big") * 5000, end=True)
    return messages


async def read_all(backlog: Backlog, offset: int) -> list[bytes]:
    """Messages from `offset` on."""
    found, part = [], b""
    while True:
        await backlog.load(offset)
        piece = backlog.output.maybe_read(offset, 1 << 40, 50_000)
        if piece is None:
            return found
        offset = piece.stop
        part += piece.data
        if piece.end:
            found.append(part)
            part = b""


def test_unread_output_is_in_memory_when_small_else_on_disk_up_to_the_cap(spool: Spool) -> None:
    async def play() -> None:
        rung: list[bool] = []
        backlog, tally = Backlog(MIB, lambda: rung.append(True)), Tally()
        backlog.keep_on(spool.shelf(), tally)
        assert await fill(backlog, 6) == 6 and spool.used_bytes == 0
        count = 6 + await fill(backlog, 1000)
        output = backlog.output
        assert 90 <= count < 120, "the function waits at its cap"
        assert output.cost_bytes < 200_000 and MIB <= output.kept_bytes < MIB + 200_000
        assert tally.total == output.cost_bytes
        messages = await read_all(backlog, 0)
        assert [len(message) for message in messages] == [10_000] * count
        assert messages == await read_all(backlog, 0), "what is not acknowledged can be read again"
        rung.clear()
        output.forget(output.stop // 2)
        assert rung, "who waits for room is told"
        backlog.drop()
        assert (spool.used_bytes, tally.total) == (0, 0)

    asyncio.run(play())


def test_a_reader_keeps_it_in_memory_until_he_leaves(spool: Spool) -> None:
    async def play() -> None:
        backlog = Backlog(MIB, lambda: None)
        backlog.keep_on(spool.shelf(), Tally())
        backlog.attend(True)
        assert await fill(backlog, 50) == 50 and spool.used_bytes == 0
        backlog.attend(False)
        async with asyncio.timeout(20):
            while backlog.output.cost_bytes > 64 * 1024:
                await asyncio.sleep(0)
        assert len(await read_all(backlog, 0)) == 50

    asyncio.run(play())


def test_where_the_disk_is_full_a_function_waits_and_goes_on(spool: Spool) -> None:
    async def play() -> None:
        greedy = spool.shelf()
        while await greedy.maybe_put(WORD) is not None:
            pass
        bell = asyncio.Event()
        backlog = Backlog(MIB, bell.set)
        backlog.keep_on(spool.shelf(), Tally())
        count = await fill(backlog, 1000)
        assert 6 <= count < 10 and not await backlog.has_room()
        greedy.close()
        assert bell.is_set() and await backlog.has_room()
        assert len(await read_all(backlog, 0)) == count

    asyncio.run(play())


def test_sessions_that_wait_for_a_disk_that_fails_do_not_wake_each_other_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_RETRY_S", 0.1)

    async def play() -> None:
        spool = Spool(tmp_path, 2 * MIB)
        tries = 0
        write = spool.write

        async def fail(*values: object) -> None:
            nonlocal tries
            tries += 1
            raise OSError("no space left")

        monkeypatch.setattr(spool, "write", fail)
        bells = [asyncio.Event(), asyncio.Event()]
        backlogs = [Backlog(MIB, bell.set) for bell in bells]
        for backlog in backlogs:
            backlog.keep_on(spool.shelf(), Tally())
            assert await fill(backlog, 100) < 100
        assert tries == 2 and not any(bell.is_set() for bell in bells)
        monkeypatch.setattr(spool, "write", write)
        async with asyncio.timeout(20):
            for bell, backlog in zip(bells, backlogs, strict=True):
                await bell.wait()
                assert await backlog.has_room(), "the disk has room again"
        spool.close()

    asyncio.run(play())
    assert len(caplog.records) == 1, "a full disk is not filled with words about it"


def test_a_session_that_is_gone_writes_nothing_more(spool: Spool) -> None:
    async def play() -> None:
        shelf = spool.shelf()
        shelf.close()
        assert await shelf.maybe_put(WORD) is None and on_disk(spool) == b""

    asyncio.run(play())
