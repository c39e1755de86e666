"""What functions keep between their sessions: blobs, sealed piece by piece under the function's data key.

In the box's database, beside the functions. Of a blob the disk tells its size and its version, never its name. The
pieces of a new blob arrive one by one under a number of their own; one transaction at the end makes them the blob and
erases the old one. So a reader never sees half of either, and a crash leaves nothing but pieces that the next sweep
takes away. Blocking calls; the thread is the store's.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from bento_tor.errors import BentoError
from bento_tor.server import tokens

SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    invocation_hash BLOB NOT NULL REFERENCES functions(invocation_hash) ON DELETE CASCADE,
    name_hash       BLOB NOT NULL,
    name            BLOB NOT NULL,
    version         INTEGER NOT NULL,
    size            INTEGER NOT NULL,
    pieces          BLOB NOT NULL UNIQUE,
    PRIMARY KEY (invocation_hash, name_hash)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces (
    invocation_hash BLOB NOT NULL REFERENCES functions(invocation_hash) ON DELETE CASCADE,
    pieces          BLOB NOT NULL,
    number          INTEGER NOT NULL,
    body            BLOB NOT NULL,
    PRIMARY KEY (pieces, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pieces_of ON pieces (invocation_hash);
CREATE TABLE IF NOT EXISTS endings (
    invocation_hash BLOB PRIMARY KEY REFERENCES functions(invocation_hash) ON DELETE CASCADE,
    ends_at         INTEGER NOT NULL
) WITHOUT ROWID;
"""
SWEEP = "DELETE FROM pieces WHERE pieces NOT IN (SELECT pieces FROM blobs)"
PIECE_BYTES = 64 * 1024
_MOST_S = 1 << 32  # more than any box has days for


class Declined(BentoError):
    """The blob cannot be had, or kept. `word` is for the program: missing, conflict, full, invalid."""

    def __init__(self, word: str, sentence: str) -> None:
        super().__init__(sentence)
        self.word = word


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a blob without reading it."""

    name: str
    version: int
    size: int
    pieces: bytes


class Blobs:
    """The blobs of one function, opened with its data key."""

    def __init__(
        self,
        db: sqlite3.Connection,
        function_hash: bytes,
        data_key: bytes,
        *,
        most_bytes: int,
        most_blobs: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._function = function_hash
        self._key = data_key
        self._most_bytes = most_bytes
        self._most_blobs = most_blobs
        self._clock = clock

    def head(self, name: str) -> Head:
        """Raises Declined where there is none."""
        maybe_head = self._maybe_head(name)
        if maybe_head is None:
            raise Declined("missing", f"nothing is kept under the name {name!r}")
        return maybe_head

    def heads(self) -> list[Head]:
        """All of them, by name."""
        rows = self._all("SELECT name_hash, name, version, size, pieces FROM blobs WHERE invocation_hash = ?")
        return sorted((self._open_head(row) for row in rows), key=lambda head: head.name)

    def read(self, head: Head, number: int) -> bytes:
        """Piece `number` (from 0). Raises Declined where the blob has been changed meanwhile."""
        rows = self._all(
            "SELECT body FROM pieces WHERE invocation_hash = ? AND pieces = ? AND number = ?", head.pieces, number
        )
        maybe_piece = tokens.maybe_unseal(self._key, rows[0][0], _bound(head.pieces, number)) if rows else None
        if maybe_piece is None:
            raise Declined("conflict", f"{head.name!r} was changed while it was read")
        return maybe_piece

    def begin(self, name: str, size: int, expect: int) -> bytes:
        """Room for a new blob; gives the number under which its pieces come. Raises Declined."""
        self._check(name, size, expect)
        return os.urandom(16)

    def write(self, pieces: bytes, number: int, data: bytes) -> None:
        """One piece, of PIECE_BYTES at most."""
        self._change(
            "INSERT INTO pieces VALUES (?, ?, ?, ?)",
            self._function, pieces, number, tokens.seal(self._key, data, _bound(pieces, number)),
        )  # fmt: skip

    def finish(self, name: str, pieces: bytes, size: int, expect: int) -> int:
        """Make the pieces the blob, whatever was under the name before is gone; gives the version. Raises Declined."""
        name_hash = self._name_hash(name)
        with self._transaction():
            maybe_old = self._check(name, size, expect)
            version = self._next_version()
            if maybe_old is not None:
                self._forget(maybe_old, name_hash)
            sealed = tokens.seal(self._key, name.encode(), self._function + name_hash)
            self._change(
                "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
                self._function, name_hash, sealed, version, size, pieces,
            )  # fmt: skip
        return version

    def abandon(self, pieces: bytes) -> None:
        """The rest of the pieces will not come."""
        self._change("DELETE FROM pieces WHERE invocation_hash = ? AND pieces = ?", self._function, pieces)

    def delete(self, name: str, expect: int) -> None:
        """Forget a blob; overwritten on disk. Raises Declined."""
        with self._transaction():
            head = self.head(name)
            _require(head.name, head.version, expect)
            self._forget(head, self._name_hash(name))

    def expire(self, seconds: int) -> None:
        """The function ends in so many seconds, with all that it keeps; where it was to end sooner, it does."""
        self._change(
            "INSERT INTO endings SELECT invocation_hash, ? FROM functions WHERE invocation_hash = ?"
            " ON CONFLICT DO UPDATE SET ends_at = min(ends_at, excluded.ends_at)",
            int(self._clock()) + min(seconds, _MOST_S), self._function,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------

    def _check(self, name: str, size: int, expect: int) -> Head | None:
        """Whether it may be kept, now; gives what it would replace."""
        maybe_old = self._maybe_head(name)
        _require(name, maybe_old.version if maybe_old else 0, expect)
        count, total = self._all("SELECT count(*), coalesce(sum(size), 0) FROM blobs WHERE invocation_hash = ?")[0]
        if maybe_old is not None:
            count, total = count - 1, total - maybe_old.size
        if total + size > self._most_bytes:
            raise Declined("full", f"this box keeps {self._most_bytes} bytes of one function")
        if count >= self._most_blobs:
            raise Declined("full", f"this box keeps {self._most_blobs} blobs of one function")
        return maybe_old

    def _maybe_head(self, name: str) -> Head | None:
        rows = self._all(
            "SELECT name_hash, name, version, size, pieces FROM blobs WHERE invocation_hash = ? AND name_hash = ?",
            self._name_hash(name),
        )
        return self._open_head(rows[0]) if rows else None

    def _open_head(self, row: Any) -> Head:
        name_hash, sealed, version, size, pieces = row
        maybe_name = tokens.maybe_unseal(self._key, sealed, self._function + name_hash)
        if maybe_name is None:
            raise Declined("missing", "what was kept under this name is damaged")
        return Head(maybe_name.decode(), version, size, pieces)

    def _forget(self, head: Head, name_hash: bytes) -> None:
        self._change("DELETE FROM blobs WHERE invocation_hash = ? AND name_hash = ?", self._function, name_hash)
        self.abandon(head.pieces)

    def _next_version(self) -> int:
        """Higher than any that the function has seen, also of a blob that is gone: a version never comes again."""
        self._change("UPDATE functions SET versions = versions + 1 WHERE invocation_hash = ?", self._function)
        rows = self._all("SELECT versions FROM functions WHERE invocation_hash = ?")
        if not rows:
            raise Declined("invalid", "the function has been erased")
        return int(rows[0][0])

    def _name_hash(self, name: str) -> bytes:
        """Keyed: a guessed name cannot be looked for on a seized disk."""
        return hmac.new(self._key, b"bento1 blob name\0" + name.encode(), hashlib.sha256).digest()

    def _all(self, query: str, *values: bytes | int) -> list[Any]:
        with closing(self._db.execute(query, (self._function, *values))) as cursor:
            return cursor.fetchall()

    def _change(self, query: str, *values: bytes | int) -> None:
        try:
            self._db.execute(query, values)
        except sqlite3.Error as why:
            # A full disk; or the function was erased, and its blobs with it.
            raise Declined("full", "the box cannot keep this now") from why

    def _transaction(self) -> sqlite3.Connection:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db


def _require(name: str, version: int, expect: int) -> None:
    if expect >= 0 and version != expect:
        raise Declined("conflict", f"{name!r} has version {version}, not {expect}")


def _bound(pieces: bytes, number: int) -> bytes:
    """A piece opens in its place only: pieces cannot be swapped on disk."""
    return pieces + number.to_bytes(8, "big")
