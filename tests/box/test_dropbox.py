"""Drop boxes in real boxes: left, collected, counted, ended by the box; what a holder of the token may try."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bento_tor.client import Box, dropbox, tickets
from bento_tor.client.dropbox import Getting, Gone, Limits, shutdown_token
from bento_tor.client.files import PartFile, SealedFile
from bento_tor.client.sealing import SEALED_CHUNK_BYTES, NotWhatWasPut
from bento_tor.client.source import load, make_call
from bento_tor.client.tickets import DropTicket
from bento_tor.errors import ConfigError, Refused

pytestmark = pytest.mark.sandbox

CONFIG = """
ready = 2
[policy]
sessions = 6
store_bytes = 8000000
[policy.limits]
wall_s = 20
memory_bytes = 67108864
"""
MIB = 1024 * 1024
# What the function says of itself.
GRACE_S = 600


@pytest.fixture(scope="module")
def there(running_box, tmp_path_factory):
    """One box with storage for the tests that do not end it."""
    running = running_box(tmp_path_factory.mktemp("drop") / "s", config=CONFIG)
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words


class Drop:
    """A drop box with a file in it, and a folder to get it into."""

    def __init__(self, box: Box, folder: Path, data: bytes, limits: Limits = Limits()) -> None:
        self.box, self.folder, self.data = box, folder, data
        self.ticket = DropTicket(str(box.address), os.urandom(32), os.urandom(32))
        self.file = folder / "file"
        self.file.write_bytes(data)
        self.limits = limits
        self.put()

    @classmethod
    def empty(cls, box: Box) -> Drop:
        """One that nothing has been put into."""
        drop = cls.__new__(cls)
        drop.box, drop.ticket = box, DropTicket(str(box.address), os.urandom(32), os.urandom(32))
        box.upload(load("dropbox"), invocation=drop.ticket.token, shutdown=shutdown_token(drop.ticket))
        return drop

    def put(self) -> None:
        dropbox.put(self.box, self.ticket, SealedFile(self.file, self.ticket.secret), self.limits)

    def getting(self, path: str = "got", box: Box | None = None) -> tuple[Getting, PartFile]:
        part = PartFile(self.folder / path, str(self.ticket), os.urandom(8).hex())
        return Getting(box or self.box, self.ticket, part, name=part.name), part

    def get(self, path: str = "got", box: Box | None = None) -> int | None:
        getting, part = self.getting(path, box)
        try:
            getting.body()
            left = getting.last()
            part.finish(getting.header, self.ticket.secret)
        finally:
            part.close()
        if left == 0:
            getting.done()
        assert (self.folder / path).read_bytes() == self.data
        return left

    def ask(self, call: str, *arguments: object, then: bytes = b"") -> tuple[str, list[bytes]]:
        """The function itself, as any holder of the token may call it."""
        session = self.box.function(self.ticket.token).start(make_call(call, *arguments))
        if then:
            session.send(then)
        session.finish()
        messages = list(session)
        return session.wait().word, messages


def refusal(said: tuple[str, list[bytes]]) -> str:
    word, messages = said
    assert word == "returned", said
    return str(json.loads(messages[-1])["no"])


def on_disk(state: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(state.rglob("*")) if file.is_file())


def rows(state: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{state / 'box' / 'box.db'}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def kept_pieces(state: Path) -> int:
    return int(rows(state, "SELECT count(*) FROM pieces")[0][0])


def pieces_of_each(state: Path) -> dict[bytes, int]:
    return dict(rows(state, "SELECT invocation_hash, count(*) FROM pieces GROUP BY invocation_hash"))


def ends_of_each(state: Path) -> dict[bytes, int]:
    return dict(rows(state, "SELECT invocation_hash, ends_at FROM endings"))


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 3 * MIB + 5])
def test_what_is_put_is_got_as_often_as_was_said(there, tmp_path: Path, size: int) -> None:
    with there.connect() as box:
        drop = Drop(box, tmp_path, os.urandom(size), Limits(max_gets=2))
        drop.put()  # said twice, done once
        assert [drop.get("one"), drop.get("two")] == [1, 0]
        with pytest.raises(Gone):
            drop.get("three")
        assert not list(tmp_path.glob("three*"))


def test_the_box_killed_between_put_and_get_has_it_still_and_its_disk_tells_nothing(new_box, tmp_path: Path) -> None:
    data = b"a text that must not be on the disk " * 20_000
    first = new_box(config=CONFIG)
    with first.connect() as box:
        drop = Drop(box, tmp_path, data)
    first.kill()
    disk = on_disk(first.state)
    sealed = b"".join(SealedFile(drop.file, drop.ticket.secret).pieces(0))
    assert data[:36] not in disk and drop.ticket.token not in disk and drop.ticket.secret not in disk
    assert sealed[:64] not in disk and len(disk) > len(sealed), "what is sealed is sealed once more at rest"
    second = new_box(config=CONFIG)
    with second.connect() as box:
        assert drop.get(box=box) == 0
        with pytest.raises(Gone):
            drop.get("again", box)
    assert kept_pieces(second.state) == 0


def test_a_get_that_breaks_and_goes_on_in_another_process_is_one(there, tmp_path: Path) -> None:
    with there.connect() as box:
        drop = Drop(box, tmp_path, os.urandom(3 * MIB))

        def stop_half_way(count: int) -> None:
            if part.chunks > 20:
                raise KeyboardInterrupt

        getting, part = drop.getting()
        getting._moved = stop_half_way
        with pytest.raises(KeyboardInterrupt):
            getting.body()
        part.close()
        other, rest = drop.getting("other")  # that never comes to its end
        other.body()
        rest.close()
    came: list[int] = []
    with there.connect() as box:
        drop.box = box
        getting, part = drop.getting()
        assert part.chunks >= 19
        getting._moved = came.append
        getting.body()
        assert sum(came) < 2 * MIB, "what was here did not come again"
        assert getting.last() == 0
        # The answer was lost, say: the same get may have its last piece again, and nobody else.
        assert (
            drop.ask("last", getting.name)[1][1]
            == b"".join(SealedFile(drop.file, drop.ticket.secret).pieces(0))[-SEALED_CHUNK_BYTES:]
        )
        assert refusal(drop.ask("last", "somebody")) == "used"
        part.finish(getting.header, drop.ticket.secret)
        getting.done()
    assert (tmp_path / "got").read_bytes() == drop.data


def test_of_two_gets_at_once_with_a_budget_of_one_one_has_it(there, tmp_path: Path) -> None:
    with there.connect() as one, there.connect() as other:
        drop = Drop(one, tmp_path, os.urandom(MIB))
        gets = []
        for name, box in (("one", one), ("other", other)):
            getting, part = drop.getting(name, box)
            getting.body()
            part.append = lambda chunk: None
            part.close()
            gets.append(getting)
        came: list[object] = []

        def take(getting: Getting) -> None:
            try:
                came.append(getting.last())
            except Gone:
                came.append("gone")

        threads = [threading.Thread(target=take, args=(getting,)) for getting in gets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(came, key=str) == [0, "gone"]


def test_the_box_ends_it_also_if_nobody_comes_again(new_box, tmp_path: Path, eventually: Callable[..., None]) -> None:
    running = new_box(config=CONFIG)
    with running.connect() as box:
        drop = Drop(box, tmp_path, os.urandom(MIB), Limits(expires_s=12, max_gets=0))
        assert kept_pieces(running.state) > 10
    eventually(lambda: kept_pieces(running.state) == 0, within_s=40)
    with running.connect() as box, pytest.raises(Gone):
        drop.get(box=box)


def test_a_budget_that_is_used_up_without_a_last_word_is_ended_by_the_box(there, tmp_path: Path) -> None:
    with there.connect() as box:
        before = ends_of_each(there.state)
        drop = Drop(box, tmp_path, b"x" * 100)
        (function,) = ends_of_each(there.state).keys() - before.keys()
        assert ends_of_each(there.state)[function] > time.time() + 86400
        assert drop.ask("last", "me")[0] == "returned"
        assert ends_of_each(there.state)[function] <= time.time() + GRACE_S


def test_an_erased_one_an_unknown_one_and_one_of_another_box_are_refused_alike(there, tmp_path: Path) -> None:
    with there.connect() as box:
        drop = Drop(box, tmp_path, b"x")
        dropbox.erase(box, drop.ticket)
        said = []
        for ticket in (drop.ticket, DropTicket(drop.ticket.box, os.urandom(32), drop.ticket.secret)):
            drop.ticket = ticket
            with pytest.raises(Gone) as caught:
                drop.get()
            said.append((caught.value.message, caught.value.hint))
        assert said[0] == said[1]


def test_a_wrong_key_opens_nothing_and_counts_nothing(there, tmp_path: Path) -> None:
    with there.connect() as box:
        drop = Drop(box, tmp_path, os.urandom(200_000))
        right, drop.ticket = drop.ticket, DropTicket(drop.ticket.box, drop.ticket.token, os.urandom(32))
        with pytest.raises(NotWhatWasPut):
            drop.get()
        drop.ticket = right
        assert drop.get() == 0


# What a holder of the token may say, and what it is told.
HOSTILE = [
    ("put", (5, b"", 60, 1, 1 << 20), "filled"),
    ("put", (1 << 60,), "bad"),
    ("put", (-1,), "bad"),
    ("put", (True,), "bad"),
    ("put", ("5",), "bad"),
    ("put", (5, "text"), "bad"),
    ("put", (5, b"x" * 257), "bad"),
    ("put", (5, b"", 60, 1, 1 << 40), "bad"),
    ("limit", (1, 0, 1), "filled"),
    ("get", ("x" * 65,), "bad"),
    ("get", (7,), "bad"),
    ("get", ("me", -1), "bad"),
    ("get", ("me", 1 << 70), "bad"),
    ("get", ("me", 0.5), "bad"),
    ("last", ("",), "bad"),
    ("last", (["me"],), "bad"),
]


@pytest.fixture(scope="module")
def victim(there, tmp_path_factory):
    with there.connect() as box:
        yield Drop(box, tmp_path_factory.mktemp("victim"), b"what was put", Limits(max_gets=0))


OTHER_NAMES = ("Drop", "No", "answering", "reply", "whole_number", "contextmanager", "json", "api")


def test_a_hostile_word_is_refused_and_changes_nothing(there, tmp_path: Path) -> None:
    with there.connect() as box:
        before = ends_of_each(there.state)
        victim = Drop(box, tmp_path, b"what was put", Limits(max_gets=0))
        (function,) = ends_of_each(there.state).keys() - before.keys()
        ends = ends_of_each(there.state)[function]
        for call, arguments, word in HOSTILE:
            assert refusal(victim.ask(call, *arguments)) == word, (call, arguments)
        for name in OTHER_NAMES:  # whatever else is callable there is not handed the store
            for arguments in ((), ({},), ("state", 1, 1)):
                victim.ask(name, *arguments)
        assert ends_of_each(there.state)[function] == ends
        assert victim.get() is None


# Before anything was put; each has a drop box of its own.
EMPTY = [
    ("get", ("me",), b"", "empty"),
    ("last", ("me",), b"", "empty"),
    ("done", ("me",), b"", "empty"),
    ("put", (0,), b"", "bad"),
    ("put", (5, b"", 0), b"", "bad"),
    ("put", (5, b"", -1), b"", "bad"),
    ("put", (5, b"", 1 << 70), b"", "bad"),
    ("put", (5, b"", 60, -1), b"", "bad"),
    ("put", (5, b"", 60, "many"), b"", "bad"),
    ("put", (1 << 40, b"", 60, 1, 1), b"", "bad"),
    ("put", (5, b"", 60, 1), b"abc", "short"),
    ("put", (5, b"", 60, 1), b"abcdefg", "bad"),
    ("put", (40_000_000, b"", 60, 1, 16 << 20), b"x" * (17 << 20), "full"),
]


def test_what_cannot_be_put_is_said_and_is_no_put(there) -> None:
    with there.connect() as box:
        for call, arguments, then, word in EMPTY:
            drop = Drop.empty(box)
            assert refusal(drop.ask(call, *arguments, then=then)) == word, (call, arguments)
            assert refusal(drop.ask("get", "me")) == "empty"
            dropbox.erase(box, drop.ticket)


def test_limits_that_were_set_before_bind_whoever_puts(there) -> None:
    with there.connect() as box:
        drop = Drop.empty(box)
        assert drop.ask("limit", 600, 2, 1000) == ("returned", [b"{}"])
        assert refusal(drop.ask("put", 1001, b"", 600, 99)) == "full"
        assert drop.ask("put", 4, b"", 6000, 99, then=b"data")[1][-1] == b'{"have": 4}'
        assert [json.loads(drop.ask("last", name)[1][0]) for name in ("a", "a", "b")] == [
            {"left": 1}, {"left": 1}, {"left": 0},
        ]  # fmt: skip


def test_a_box_without_room_is_told_before_anything_is_sent(there, box, tmp_path: Path) -> None:
    with box.connect() as none, pytest.raises(Refused, match="keeps no data"):
        Drop(none, tmp_path, b"x")
    with there.connect() as small, pytest.raises(Refused, match="keeps 8000000 bytes"):
        Drop(small, tmp_path, bytes(9_000_000))
    with there.connect() as small, pytest.raises(Refused, match="longer than 30 days"):
        Drop(small, tmp_path, b"x", Limits(expires_s=31 * 86400))


def test_a_put_goes_on_where_it_was_stopped_and_a_changed_file_is_no_part_of_it(
    there, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with there.connect() as box:
        drop = Drop.__new__(Drop)
        drop.box, drop.folder, drop.data, drop.limits = box, tmp_path, os.urandom(5 * MIB), Limits()
        drop.ticket = DropTicket(str(box.address), os.urandom(32), os.urandom(32))
        drop.file = tmp_path / "file"
        drop.file.write_bytes(drop.data)
        sealed = SealedFile(drop.file, drop.ticket.secret)
        sent: list[int] = []

        def moved(count: int) -> None:
            sent.append(count)
            if sum(sent) > 3 * MIB:  # the client is ahead of the box's disk
                eventually(lambda: any(pieces_of_each(there.state).get(f, 0) > 20 for f in made()))
                raise KeyboardInterrupt

        def made() -> set[bytes]:
            return pieces_of_each(there.state).keys() - before.keys()

        before = pieces_of_each(there.state)
        with pytest.raises(KeyboardInterrupt):
            dropbox.put(box, drop.ticket, sealed, Limits(), moved=moved)
    with there.connect() as box:
        again: list[int] = []
        drop.file.write_bytes(drop.data[::-1])
        with pytest.raises(Refused, match="something else"):
            dropbox.put(box, drop.ticket, SealedFile(drop.file, drop.ticket.secret), Limits())
        drop.file.write_bytes(drop.data)
        dropbox.put(box, drop.ticket, SealedFile(drop.file, drop.ticket.secret), Limits(), moved=again.append)
        assert again[0] >= MIB and sum(again) == sealed.size
        assert drop.get(box=box) == 0


def test_the_commands(there, bento, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    put = bento("client", "dropbox", "put", "file", "--box", there.address, "-o", "ticket", "--max-gets", "2")
    assert (put.returncode, put.stdout) == (0, "the ticket is in ticket\n"), put.stderr
    assert (tmp_path / "ticket").stat().st_mode & 0o777 == 0o600
    got = bento("client", "dropbox", "get", "@ticket", "-o", "one", "--json")
    assert json.loads(got.stdout) == {"file": "one", "bytes": 100_000, "gets_left": 1}, got.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "file").read_bytes()
    text = (tmp_path / "ticket").read_text()
    got = bento("client", "dropbox", "get", "-", "-o", "two", stdin=text)
    assert got.stdout == "two: 100000 bytes; it is erased there\n", got.stderr
    assert bento("client", "dropbox", "put", "file", "--box", there.address, "-o", "other").returncode == 0
    assert bento("client", "dropbox", "erase", "@other").stdout == "erased\n"
    assert not list(tmp_path.glob("*.part*"))
    for arguments, code, words in (
        (("get", "@other", "-o", "three"), 7, "there is no such drop box"),
        (("get", "@ticket", "-o", "one"), 3, "one is there already"),
        (("get", text, "-o", "x"), 3, "the command line is not"),
        (("get", "ticket", "-o", "x"), 3, "names no ticket"),
        (("put", "nothing", "--box", there.address), 3, "cannot read nothing"),
        (("put", "file", "--box", there.address, "-o", "ticket"), 3, "cannot write ticket"),
        (("put", "file", "--box", there.address, "--expires", "-1d"), 2, "is no time"),
        (("put", "file", "--box", there.address, "--max-gets", "-1"), 2, "-1 is not in the range"),
        (("put", "file", "--box", "unix:/elsewhere", "--resume", "@ticket"), 3, "this ticket is for"),
    ):
        done = bento("client", "dropbox", *arguments)
        assert done.returncode == code and words in done.stderr, (arguments, done.returncode, done.stderr)
    assert not list(tmp_path.glob("*.part*"))


def test_a_ticket_is_not_taken_for_another(there, tmp_path: Path) -> None:
    drop = DropTicket("unix:x", b"t" * 32, b"s" * 32)
    assert tickets.parse_drop(f" {drop}\n") == drop and "ttt" not in repr(drop)
    with pytest.raises(ConfigError):
        tickets.parse(str(drop))
    for text in ("", "bento1:unix:x:dropbox:AAAA", str(tickets.Ticket("unix:x", "session", b"t" * 32))):
        with pytest.raises(ConfigError):
            tickets.parse_drop(text)


def test_a_put_that_fails_leaves_a_ticket_only_where_it_is_good_for_something(box, bento, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    put = ("client", "dropbox", "put", "file", "-o", "ticket", "--box")
    done = bento(*put, box.address)
    assert done.returncode == 7 and "keeps no data" in done.stderr and not (tmp_path / "ticket").exists()
    done = bento(*put, "unix:/nobody")
    assert done.returncode == 6 and "--resume @ticket goes on" in done.stderr
    tickets.parse_drop((tmp_path / "ticket").read_text())
