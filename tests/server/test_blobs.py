"""What functions keep: sealed, whole or absent, versioned, within its measure, gone with its function."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from bento_tor.sandbox import frames
from bento_tor.server.blobs import PIECE_BYTES, Blobs, Declined
from bento_tor.server.keeping import Keeping, OutOfOrder
from bento_tor.server.store import Store

BOX = "a" * 56 + ".onion"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box.db"


class Owner:
    """A store with one function in it, and that function's blobs."""

    def __init__(self, path: Path, *, most_bytes: int = 1_000_000, most_blobs: int = 4) -> None:
        self.store = Store(path, BOX, max_functions=10)
        self.invocation, self.shutdown = os.urandom(32), os.urandom(32)
        self.store.save(self.invocation, self.shutdown, b"m", b"def f(): pass")
        self.most = {"most_bytes": most_bytes, "most_blobs": most_blobs}
        self.blobs = self.open()

    def open(self) -> Blobs:
        blobs = self.store.maybe_blobs(self.invocation, **self.most)
        assert blobs is not None
        return blobs

    def put(self, name: str, data: bytes, expect: int = -1) -> int:
        pieces = self.blobs.begin(name, len(data), expect)
        for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
            self.blobs.write(pieces, number, data[start : start + PIECE_BYTES])
        return self.blobs.finish(name, pieces, len(data), expect)

    def get(self, name: str) -> bytes:
        head = self.blobs.head(name)
        return b"".join(self.blobs.read(head, number) for number in range(-(-head.size // PIECE_BYTES)))


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 300_000])
def test_what_is_put_comes_back_also_after_a_restart(path: Path, size: int) -> None:
    owner, data = Owner(path), os.urandom(size)
    assert owner.put("a/ü", data) == 1
    assert owner.get("a/ü") == data
    owner.store.close()
    owner.store = Store(path, BOX, max_functions=10)
    owner.store.sweep()
    owner.blobs = owner.open()
    assert owner.get("a/ü") == data


def test_neither_names_nor_data_are_on_the_disk_and_nothing_is_after_the_shutdown(path: Path) -> None:
    owner = Owner(path)
    owner.put("a-name-of-a-blob", b"the-secret-data" * 100)
    rows = owner.blobs._all("SELECT body FROM pieces WHERE invocation_hash = ?")
    disk = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"a-name-of-a-blob" not in disk and b"the-secret-data" not in disk and rows[0][0][:64] in disk
    owner.store.erase(owner.shutdown)
    disk = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert rows[0][0][:64] not in disk
    assert owner.store._one("SELECT count(*) FROM pieces") == (0,)
    assert owner.store._one("SELECT count(*) FROM blobs") == (0,)
    with pytest.raises(Declined):
        owner.put("again", b"x")


def test_versions_never_come_again_and_guard_what_is_put(path: Path) -> None:
    owner = Owner(path)
    assert [owner.put("a", b"1", expect=0), owner.put("a", b"2", expect=1)] == [1, 2]
    for expect in (0, 1, 3):
        with pytest.raises(Declined) as caught:
            owner.put("a", b"3", expect=expect)
        assert caught.value.word == "conflict"
    with pytest.raises(Declined):
        owner.blobs.delete("a", 1)
    owner.blobs.delete("a", 2)
    with pytest.raises(Declined) as caught:
        owner.get("a")
    assert caught.value.word == "missing"
    assert owner.put("a", b"4", expect=0) == 3


def test_who_reads_an_old_one_is_told_and_never_gets_half_of_either(path: Path) -> None:
    owner = Owner(path)
    owner.put("a", b"1" * 100_000)
    head = owner.blobs.head("a")
    assert owner.blobs.read(head, 0) == b"1" * PIECE_BYTES
    owner.put("a", b"2" * 100_000)
    with pytest.raises(Declined, match="changed") as caught:
        owner.blobs.read(head, 1)
    assert caught.value.word == "conflict"


def test_of_two_that_race_with_the_same_expectation_one_wins(path: Path) -> None:
    owner = Owner(path)
    first, second = (owner.blobs.begin("a", 1, 0) for _ in range(2))
    owner.blobs.write(first, 0, b"1")
    owner.blobs.write(second, 0, b"2")
    owner.blobs.finish("a", second, 1, 0)
    with pytest.raises(Declined):
        owner.blobs.finish("a", first, 1, 0)
    assert owner.get("a") == b"2"


def test_the_measure_holds_in_bytes_and_in_number(path: Path) -> None:
    owner = Owner(path, most_bytes=1000, most_blobs=2)
    owner.put("a", bytes(900))
    owner.put("a", bytes(1000))
    with pytest.raises(Declined, match="keeps 1000 bytes") as caught:
        owner.put("b", b"x")
    assert caught.value.word == "full"
    owner.put("a", b"")
    owner.put("b", b"")
    with pytest.raises(Declined, match="keeps 2 blobs"):
        owner.put("c", b"")
    assert [head.name for head in owner.blobs.heads()] == ["a", "b"]


def test_what_a_crash_left_half_put_is_swept(path: Path) -> None:
    owner = Owner(path)
    owner.put("whole", bytes(100_000))
    owner.blobs.write(owner.blobs.begin("half", 100_000, -1), 0, bytes(PIECE_BYTES))
    owner.store.sweep()
    assert owner.store._one("SELECT count(DISTINCT pieces) FROM pieces") == (1,)
    assert owner.get("whole") == bytes(100_000)


def test_functions_do_not_see_each_other_and_a_moved_piece_opens_nothing(path: Path) -> None:
    owner, other = Owner(path), Owner(path)
    owner.put("a", b"1" * PIECE_BYTES + b"2" * PIECE_BYTES)
    assert other.blobs.heads() == []
    with pytest.raises(Declined):
        other.get("a")
    owner.store._db.execute("UPDATE pieces SET number = 1 - number - 10")
    owner.store._db.execute("UPDATE pieces SET number = number + 10")
    with pytest.raises(Declined):
        owner.get("a")


def test_a_function_names_its_own_end_and_it_can_only_come_nearer(path: Path) -> None:
    now = [1_000_000.5]
    owner = Owner(path)
    owner.store._clock = lambda: now[0]
    owner.blobs = owner.open()
    owner.put("a", b"kept" * 1000)
    for seconds in (100, 200, 50, 1 << 63, 70):
        owner.blobs.expire(seconds)
    assert owner.store.sweep_ended() == ([], pytest.approx(49.5))
    session = os.urandom(32)
    now[0] += 49
    assert owner.store.maybe_load(owner.invocation) is not None and owner.store.begin_session(session, owner.invocation)
    # From that second on the token opens nothing, swept or not; storing it again begins anew.
    now[0] += 1
    assert owner.store.maybe_load(owner.invocation) is None
    assert not owner.store.begin_session(os.urandom(32), owner.invocation)
    assert owner.store.maybe_blobs(owner.invocation, **owner.most) is None
    body = owner.store._one("SELECT body FROM pieces")[0]
    assert owner.store.sweep_ended() == ([owner.store.function_hash(owner.invocation)], None)
    assert owner.store._one("SELECT count(*) FROM functions") == (0,)
    disk = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert body[:64] not in disk, "overwritten, in the log too"
    with pytest.raises(Declined):
        owner.put("a", b"x")
    owner.blobs.expire(5)  # what a session still says of a function that is gone is nobody's
    assert owner.store.sweep_ended() == ([], None)


def test_what_is_stored_again_after_its_end_is_new_and_before_it_keeps_its_end(path: Path) -> None:
    now = [1_000_000.0]
    owner = Owner(path)
    owner.store._clock = lambda: now[0]
    owner.blobs = owner.open()
    owner.put("a", b"x")
    owner.blobs.expire(10)
    again = (owner.invocation, owner.shutdown, b"m", b"def f(): pass")
    assert owner.store.save(*again).value == "done"
    now[0] += 10
    assert owner.store.maybe_load(owner.invocation) is None
    assert owner.store.save(*again).value == "done"
    owner.blobs = owner.open()
    assert owner.blobs.heads() == [] and owner.store.sweep_ended() == ([], None)


# --- the talk with a function -----------------------------------------------------------------------------------


def request(verb: int, name: str = "", expect: int = -1, length: int = 0) -> bytes:
    body = struct.pack("!BqQ", verb, expect, length) + name.encode()
    return frames.HEADER.pack(frames.STORE, len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        request(0, "a"),
        request(9, "a"),
        request(1),
        request(4, "a"),
        request(1, "a", expect=-2),
        request(1, "a", length=1),
        request(1, "x" * 257),
        request(5, "a", length=5),
        request(2, "a")[:-1] + b"\xff",
        frames.HEADER.pack(frames.STORE, 0),
        frames.HEADER.pack(frames.STORE_DATA, 0),
        frames.HEADER.pack(frames.STORE_DATA, frames.MAX_PART_BYTES + 1),
    ],
)
def test_a_request_that_is_none_ends_the_reading(data: bytes) -> None:
    seen = frames.FrameReader().feed(data)
    assert [type(frame) for frame in seen] == [frames.Illegal]


def talk(owner: Owner, *asked: frames.StoreRequest | frames.StoreData) -> list[bytes]:
    """Each answer's kind, as a byte, of a whole talk."""

    async def run() -> list[bytes]:
        async def on_disk(work, *values):
            return work(*values)

        keeping = Keeping(owner.blobs, on_disk)
        answers = []
        try:
            for one in asked:
                answers += [frame async for frame in keeping.answer(one)]
        finally:
            await keeping.stop()
        return answers

    return asyncio.run(run())


def put(name: str, length: int, expect: int = -1) -> frames.StoreRequest:
    return frames.StoreRequest(frames.Verb.PUT, name, expect, length)


@pytest.mark.parametrize(
    "asked",
    [
        [frames.StoreData(b"x")],
        [put("a", 3), frames.StoreData(b"1234")],
        [put("a", 3), put("b", 3)],
        [put("a", 3), frames.StoreRequest(frames.Verb.LIST, "", -1, 0)],
        [put("a", 0), frames.StoreData(b"1")],
        [put("a", 1 << 60), frames.StoreData(b"1")],
    ],
)
def test_what_is_out_of_order_is_said_and_leaves_nothing(path: Path, asked: list) -> None:
    owner = Owner(path)
    with pytest.raises(OutOfOrder):
        talk(owner, *asked)
    assert owner.store._one("SELECT count(*) FROM pieces") == (0,)


def test_an_end_is_told_to_who_sweeps(path: Path) -> None:
    owner, told = Owner(path), []

    async def run() -> None:
        async def on_disk(work, *values):
            return work(*values)

        keeping = Keeping(owner.blobs, on_disk, lambda: told.append("expiring"))
        asked = frames.FrameReader().feed(request(5, length=30))
        assert [frame[0] async for frame in keeping.answer(asked[0])] == [frames.STORE_REPLY]

    asyncio.run(run())
    assert told == ["expiring"] and owner.store.sweep_ended() == ([], pytest.approx(30, abs=2))


def test_a_blob_that_fails_on_the_way_is_answered_once_and_the_talk_goes_on(path: Path) -> None:
    owner = Owner(path)
    owner.store._db.execute(
        "CREATE TEMP TRIGGER full_disk BEFORE INSERT ON pieces BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    parts = [frames.StoreData(bytes(PIECE_BYTES)) for _ in range(3)]
    answers = talk(owner, put("a", 3 * PIECE_BYTES), *parts, frames.StoreRequest(frames.Verb.LIST, "", -1, 0))
    assert [answer[0] for answer in answers] == [frames.STORE_REPLY, frames.STORE_REFUSED, frames.STORE_REPLY]
