"""Panic's part of the store: everything is overwritten, in the file and in the log."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from bento_tor.errors import ConfigError
from bento_tor.server.store import Saved, Store

BOX = "box"


def open_store(path: Path) -> Store:
    return Store(path, BOX, max_functions=100)


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def fill(store: Store, path: Path) -> list[bytes]:
    """Functions, blobs and sessions; gives what of them is to be found on disk."""
    for number in range(20):
        invocation = bytes([number]) * 32
        assert store.save(invocation, os.urandom(32), b"{}", os.urandom(20_000)) is Saved.DONE
        assert store.begin_session(os.urandom(32), invocation)
        blobs = store.maybe_blobs(invocation, most_bytes=1 << 20, most_blobs=8)
        assert blobs is not None
        pieces = blobs.begin("name", 3000, -1)
        blobs.write(pieces, 0, os.urandom(3000))
        blobs.finish("name", pieces, 3000, -1)
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        rows = [
            bytes(row[0])
            for table, column in (
                ("functions", "key_slot"), ("functions", "body"), ("functions", "invocation_hash"),
                ("sessions", "session_hash"), ("blobs", "name"), ("pieces", "body"),
            )
            for row in db.execute(f"SELECT {column} FROM {table}")
        ]  # fmt: skip
    db.close()
    # The beginning of each: a long one is in several pages.
    return [row[:32] for row in rows]


def test_nothing_of_it_is_left_in_file_or_log(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    store = open_store(path)
    rows = fill(store, path)
    assert len(rows) == 120 and all(row in contents(tmp_path) for row in rows)
    size = len(contents(tmp_path))
    assert store.erase_all() == 20
    left = contents(tmp_path)
    assert not [row for row in rows if row in left]
    assert path.stat().st_size < size / 2 and (tmp_path / "box.db-wal").stat().st_size == 0
    assert store.count_functions() == 0 and store.erase_all() == 0
    # And it goes on.
    assert store.save(bytes(32), bytes(32), b"{}", b"source") is Saved.DONE
    store.close()


def test_a_reader_in_the_way_is_an_error_and_no_false_word(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    store = open_store(path)
    fill(store, path)
    store._db.execute("PRAGMA busy_timeout = 100")  # it waits three times, and for nothing
    reader = sqlite3.connect(path, isolation_level=None)
    # One that reads keeps the log, with the old pages in it, from being cut.
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM functions").fetchall()
    with pytest.raises(ConfigError, match="another process reads it"):
        store.erase_all()
    reader.execute("ROLLBACK")
    reader.close()
    assert store.erase_all() == 0
    assert (tmp_path / "box.db-wal").stat().st_size == 0
    store.close()


def test_while_paused_only_what_is_known_may_be_said_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "box.db")
    known, new = bytes(32), bytes([1]) * 32
    assert store.save(known, known, b"{}", b"source") is Saved.DONE
    assert store.save(known, known, b"{}", b"source", paused=True) is Saved.DONE
    assert store.save(known, known, b"{}", b"another", paused=True) is Saved.TAKEN
    assert store.save(new, new, b"{}", b"source", paused=True) is Saved.PAUSED
    assert store.count_functions() == 1
    store.close()
