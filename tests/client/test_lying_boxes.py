"""Files in drop boxes and in shards, where boxes are down or lie: what was not put is not taken, and who lied is named.

The boxes are in memory and run the function that ships; the lies are what an operator could make of its answers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bento_tor import resources
from bento_tor.client import Box, Retries, dropbox, shards, spooling, spreading
from bento_tor.client.dropbox import Getting, Gone, Limits
from bento_tor.client.files import PartFile, SealedFile
from bento_tor.client.memory import MemoryBox
from bento_tor.client.sealing import SEALED_CHUNK_BYTES, Chunk, NotWhatWasPut
from bento_tor.client.shards import ShardTicket
from bento_tor.client.spreading import Gathering, TooFew
from bento_tor.client.tickets import DropTicket
from bento_tor.errors import BentoError, ConfigError, ConnectError
from bento_tor.policy.document import Policy

FUNCTION = compile(resources.read_text("functions", "dropbox.py"), "dropbox.py", "exec")
CALLS = ("put", "get", "last", "done")


class Kept:
    """What `api.store` is, on a dict."""

    class Conflict(Exception):
        pass

    class Blob(bytes):
        version = 0

    def __init__(self) -> None:
        self.blobs: dict[str, Kept.Blob] = {}
        self.versions = 0
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes | str, expect: int | None = None) -> int:
        with self._lock:
            have = self.blobs[name].version if name in self.blobs else 0
            if expect not in (None, have):
                raise self.Conflict(name)
            self.versions += 1
            self.blobs[name] = self.Blob(data.encode() if isinstance(data, str) else data)
            self.blobs[name].version = self.versions
            return self.versions

    def get(self, name: str) -> Blob:
        return self.blobs[name]

    def list(self) -> dict[str, dict[str, int]]:
        return {name: {"version": blob.version, "bytes": len(blob)} for name, blob in self.blobs.items()}

    def expire(self, seconds: int) -> None:
        if not seconds:
            self.blobs.clear()


class Inside:
    """The function's `api`."""

    def __init__(self, session, store: Kept) -> None:
        self.send, self.recv, self.store = session.send, session.recv, store


class Place:
    """A box in memory with drop boxes, each known by its invocation token; and how it lies."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Kept] = {}
        self.down = False
        self.timeout_s = 30.0
        self.lies: dict[str, Callable] = {}
        self.memory = MemoryBox({name: self._call(name) for name in CALLS}, policy=Policy(store_bytes=1 << 30))

    def connect(self) -> Box:
        if self.down:
            return self._nobody()
        return self.memory.connect(timeout_s=self.timeout_s, retries=Retries(most=0))

    def _nobody(self) -> Box:
        class Nobody:
            builds_circuits = False

            def open(self):
                raise ConnectError("nobody listens")

        from bento_tor.client import connect
        from bento_tor.client.memory import ADDRESS

        return connect(ADDRESS, transport=Nobody(), retries=Retries(most=0))

    def _call(self, name: str) -> Callable:
        def run(session, *arguments):
            store = self.kept.setdefault(session.invocation, Kept())
            module = {"api": Inside(session, store), "__name__": "__bento__"}
            exec(FUNCTION, module)
            if name in self.lies:
                return self.lies[name](session, store, *arguments)
            return module[name](*arguments)

        return run


@pytest.fixture
def places() -> Iterator[list[Place]]:
    made = [Place() for _ in range(5)]
    yield made
    for place in made:
        place.memory.__exit__()


class Spread:
    """A file over five places, three needed."""

    def __init__(self, places: list[Place], folder: Path, data: bytes) -> None:
        self.places, self.folder, self.data = places, folder, data
        self.file = folder / "file"
        self.file.write_bytes(data)
        self.by_name = {f"unix:{number}": place for number, place in enumerate(places)}
        self.ticket = self.put()
        self.failed: dict[str, BentoError] = {}
        self.moved = 0

    def make_box(self, address: str) -> Box:
        return self.by_name[address].connect()

    def put(self) -> ShardTicket:
        ticket = ShardTicket(tuple(self.by_name), 3, self.file.stat().st_size, os.urandom(32))
        cut = self.folder / f"cut-{os.urandom(4).hex()}"
        cut.mkdir()
        ticket, spooled = spooling.cut(self.file, ticket, cut)
        spreading.put(ticket, spooled, self.make_box, Limits(max_gets=2), lambda count: None)
        return ticket

    def get(self, name: str = "got") -> None:
        out = self.folder / name
        self.failed.clear()

        def count(units: int) -> None:
            self.moved += units

        folder = spreading.folder_beside(out, self.ticket)
        Gathering(self.ticket, folder, self.make_box, moved=count, failed=self.failed.__setitem__).run(out)
        assert out.read_bytes() == self.data
        assert sorted(path.name for path in self.folder.glob(f"{name}*")) == [name], "nothing is left beside it"


# --- lies: each takes the place of one of the function's calls -------------------------------------------------------


def state(store: Kept) -> dict:
    return json.loads(store.get("state"))


def head(store: Kept, **changed: object) -> str:
    facts = state(store)
    return json.dumps({name: facts[name] for name in ("size", "header", "tail")} | {"left": 1} | changed)


def body(store: Kept) -> bytes:
    return b"".join(store.get(str(number)) for number in range(state(store)["parts"]))


def tells(change: Callable[[bytes], bytes], **changed: object) -> Callable:
    """A get that gives something else."""

    def get(session, store, name, start=0):
        session.send(head(store, **changed))
        session.send(change(body(store))[start:])

    return get


def bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def endless(session, store, name, start=0):
    session.send(head(store))
    while True:
        session.send(os.urandom(4096))


def endless_reply(session, store, *arguments):
    while True:
        session.send(b"{" + b" " * 100_000)


def dripping(session, store, name, start=0):
    session.send(head(store))
    while True:
        session.send(b"x")
        time.sleep(0.02)


def silent(session, store, *arguments):
    session.recv()


def says(text: object) -> Callable:
    return lambda session, store, *arguments: session.send(text if isinstance(text, bytes) else json.dumps(text))


def wrong_tail(session, store, name):
    session.send('{"left": 1}')
    session.send(bit(store.get("tail"), 5))


def long_tail(session, store, name):
    session.send('{"left": 1}')
    session.send(store.get("tail") + b"x")


C = SEALED_CHUNK_BYTES
LIES: dict[str, dict[str, Callable]] = {
    "a wrong bit at the start": {"get": tells(lambda data: bit(data, 0))},
    "a wrong bit at the end": {"get": tells(lambda data: bit(data, len(data) - 1))},
    "nothing but zeros": {"get": tells(lambda data: bytes(len(data)))},
    "chunks swapped": {"get": tells(lambda data: data[C : 2 * C] + data[:C] + data[2 * C :])},
    "cut short": {"get": tells(lambda data: data[:-100])},
    "nothing at all": {"get": tells(lambda data: b"")},
    "one byte more": {"get": tells(lambda data: data + b"x")},
    "cut short, and says so": {"get": tells(lambda data: data[:C], size=2 * C, tail=C)},
    "without end": {"get": endless},
    "a word without end": {"get": endless_reply},
    "silence": {"get": silent},
    "next to silence": {"get": dripping},
    "silence at the end": {"last": silent},
    "a wrong last piece": {"last": wrong_tail},
    "a last piece that is longer": {"last": long_tail},
    "nothing for a last piece": {"last": says({"left": 1})},
    "another salt": {"get": tells(lambda data: data, header="ab" * 32)},
    "no salt": {"get": tells(lambda data: data, header="")},
    "a salt that is none": {"get": tells(lambda data: data, header="zz")},
    "a size below zero": {"get": tells(lambda data: data, size=-1)},
    "a size beyond all disks": {"get": tells(lambda data: data, size=1 << 60)},
    "a size that no sealed file has": {"get": tells(lambda data: data, size=C + 1)},
    "no JSON": {"get": says(b"\xff\xfe")},
    "JSON of another kind": {"get": says([1, 2, 3])},
    "JSON too deep": {"get": says(b"[" * 8000)},
    "a refusal that drives a terminal": {"get": says({"no": "used", "why": "\x1b[2J\nall is well"})},
    "a refusal of another kind": {"get": says({"no": "whatever", "why": "x" * 5000})},
    "an error": {"get": lambda session, *more: 1 / 0},
}


@pytest.mark.parametrize("lie", LIES)
def test_one_lying_box_is_named_and_the_file_comes_back_whole(places: list[Place], tmp_path: Path, lie: str) -> None:
    spread = Spread(places, tmp_path, os.urandom(500_000))
    places[1].lies = LIES[lie]
    if "silence" in lie:
        places[1].timeout_s = 1.0
    spread.get()
    assert list(spread.failed) == ["unix:1"]
    message = spread.failed["unix:1"].message
    assert "\n" not in message and len(message) < 300
    # With two more that are down there are too few, and each is named with its reason.
    places[0].down = places[4].down = True
    with pytest.raises(TooFew) as caught:
        spread.get("again")
    told = caught.value.message
    assert told.startswith("2 of the 3 shards that are needed can be had: ")
    assert all(f"unix:{number}: " in told for number in (0, 1, 4)) and "unix:2" not in told
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("whose", ["another box's", "an older file's", "another file's of the same length"])
def test_a_shard_in_anothers_place_is_found_out(places: list[Place], tmp_path: Path, whose: str) -> None:
    spread = Spread(places, tmp_path, os.urandom(300_000))
    old = spread.ticket
    if whose != "another box's":
        spread.file.write_bytes(os.urandom(300_000) if whose.endswith("length") else spread.data)
        spread.data = spread.file.read_bytes()
        spread.ticket = spread.put()
    other = places[2].kept[old.drop(2).token] if whose == "another box's" else places[1].kept[old.drop(1).token]
    places[1].kept[spread.ticket.drop(1).token].blobs = other.blobs
    spread.get()
    assert list(spread.failed) == ["unix:1"] and isinstance(spread.failed["unix:1"], NotWhatWasPut)


def test_any_two_may_be_down_and_with_three_no_get_is_counted(places: list[Place], tmp_path: Path) -> None:
    spread = Spread(places, tmp_path, os.urandom(100_000))
    for place in places[:3]:
        place.down = True
    with pytest.raises(TooFew, match="2 of the 3 shards"):
        spread.get("none")
    for place in places:
        place.down = False
    gets = [state(place.kept[spread.ticket.drop(number).token])["gets"] for number, place in enumerate(places)]
    assert gets == [0] * 5
    places[1].down = places[3].down = True
    spread.get()
    assert sorted(spread.failed) == ["unix:1", "unix:3"]


def test_what_came_before_it_failed_does_not_come_again(places: list[Place], tmp_path: Path) -> None:
    spread = Spread(places, tmp_path, os.urandom(900_000))
    for place in places[2:]:
        place.lies = {"last": says({"left": 1})}
    with pytest.raises(TooFew):
        spread.get()
    before, spread.moved = spread.moved, 0
    for place in places:
        place.lies = {}
    spread.get()
    assert spread.moved < before / 2
    # The two that had come whole were not asked again: their gets count once.
    assert [state(place.kept[spread.ticket.drop(n).token])["gets"] for n, place in enumerate(places)][:2] == [1, 1]


def test_no_two_boxes_are_told_the_same(places: list[Place], tmp_path: Path) -> None:
    spread = Spread(places, tmp_path, b"the same text " * 50_000)
    seen = [next(iter(place.kept.items())) for place in places]
    assert len({token for token, _ in seen}) == 5
    assert len({state(store)["header"] for _, store in seen}) == 5
    chunks = [store.get(name)[at : at + 16] for _, store in seen for name in store.blobs if name != "state"
              for at in range(0, len(store.get(name)), 16)]  # fmt: skip
    assert len(set(chunks)) == len(chunks)
    everything = b"".join(data for _, store in seen for data in store.blobs.values())
    assert b"same text" not in everything and spread.ticket.secret not in everything


@pytest.mark.parametrize("size", [0, 1, 3 * 128 * 1024, 3 * 128 * 1024 + 1])
def test_files_of_every_length(places: list[Place], tmp_path: Path, size: int) -> None:
    spread = Spread(places, tmp_path, os.urandom(size))
    places[0].down = places[1].down = True
    spread.get()


def test_a_put_that_fails_says_where_and_goes_on_later(places: list[Place], tmp_path: Path) -> None:
    places[3].down = True
    with pytest.raises(TooFew, match="4 of 5 shards were left: unix:3: nobody listens"):
        Spread(places, tmp_path, b"x")


def test_our_own_disk_is_no_boxs_fault(places: list[Place], tmp_path: Path) -> None:
    spread = Spread(places, tmp_path, os.urandom(1000))
    folder = spreading.folder_beside(tmp_path / "got", spread.ticket)
    folder.write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write"):
        spread.get()


def test_tickets_are_small_and_wrong_ones_are_said(tmp_path: Path) -> None:
    boxes = tuple(f"{'a' * 55}{letter}.onion" for letter in "abcde")
    ticket = ShardTicket(boxes, 3, 10**8, os.urandom(32), os.urandom(16))
    assert shards.parse(f" {ticket}\n") == ticket and len(str(ticket)) < 420
    other = ShardTicket(("unix:/a", "b.onion:8080"), 1, 0, ticket.secret, ticket.mark)
    assert shards.parse(str(other)) == other
    secret = str(ticket).rpartition(":")[2]
    for text in (
        "", "bento1:a,b:shard:x", f"bento1:a,b:shard-2-5:{secret}", f"bento1:a,a,b:shard-2-5:{secret}",
        f"bento1:a,,b:shard-2-5:{secret}", f"bento1:a,b,c:shard-0-5:{secret}", f"bento1:a,b,c:shard-2--5:{secret}",
        f"bento1:a,b,c:shard-2-{10**16}:{secret}", f"bento1:a,b,c:shard-2-5:{secret[:-4]}",
        f"bento1:a,b,c:shard-\u0663-5:{secret}", str(DropTicket("a", b"t" * 32, b"s" * 32)),
        f"bento1:{','.join(map(str, range(40)))}:shard-2-5:{secret}",
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            shards.parse(text)


# --- one drop box ---------------------------------------------------------------------------------------------------


def test_a_part_that_is_damaged_here_is_not_taken_for_the_boxs(places: list[Place], tmp_path: Path) -> None:
    data = os.urandom(400_000)
    (tmp_path / "file").write_bytes(data)
    ticket = DropTicket("unix:0", os.urandom(32), os.urandom(32))
    with places[0].connect() as box:
        dropbox.put(box, ticket, SealedFile(tmp_path / "file", ticket.secret), Limits(max_gets=0))
        part = PartFile(tmp_path / "got", str(ticket), "me")
        Getting(box, ticket, part, name="me").body()
        part.close()
        with (tmp_path / "got.part").open("r+b") as file:
            file.write(b"damaged!")
        part = PartFile(tmp_path / "got", str(ticket), "another")
        assert (part.name, part.chunks) == ("me", 4)
        getting = Getting(box, ticket, part, name=part.name)
        getting.body()
        getting.last()
        with pytest.raises(NotWhatWasPut, match="does not fit together"):
            part.finish(getting.header, ticket.secret)
        assert not list(tmp_path.glob("got*"))


def test_what_another_ticket_left_is_not_gone_on_with(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "got", "one ticket", "me")
    part.append(Chunk(bytes(64 * 1024), b""))
    part.close()
    with pytest.raises(ConfigError, match="another ticket"):
        PartFile(tmp_path / "got", "another ticket", "me")
    (tmp_path / "got.part.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be used"):
        PartFile(tmp_path / "got", "one ticket", "me")


def test_a_link_in_the_parts_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "got.part.json").write_text('{"ticket": "%s", "name": "me"}' % ("0" * 64))
    (tmp_path / "got.part").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError):
        PartFile(tmp_path / "got", "a ticket", "me")
    (tmp_path / "got.part.json").unlink()
    PartFile(tmp_path / "got", "a ticket", "me").close()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_that_changes_as_it_is_put_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(600_000))
    sealed = SealedFile(path, b"s" * 32)
    pieces = sealed.pieces(0)
    next(pieces)
    os.utime(path, (1, 1))
    with pytest.raises(ConfigError, match="was changed"):
        next(pieces)


def test_a_drop_box_that_never_was_says_so_and_leaves_nothing(places: list[Place], tmp_path: Path) -> None:
    ticket = DropTicket("unix:0", os.urandom(32), os.urandom(32))
    with places[0].connect() as box:
        part = PartFile(tmp_path / "got", str(ticket), "me")
        with pytest.raises(Gone, match="there is no such drop box"):
            Getting(box, ticket, part, name="me").body()
        part.close()
    assert not list(tmp_path.iterdir())
