"""What the box keeps on disk: functions, sealed, and what became of sessions. SQLite in WAL mode; blocking calls.

An answer `Stored` or `Started` is given only after the commit is on disk, so a box killed at any moment keeps
whatever it acknowledged. Lookups are by hash of a 256-bit random token: the index compares hashes, which tells a
guesser nothing about the token (no timing oracle).
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.server import blobs, tokens
from bento_tor.server.blobs import Blobs

_SCHEMA = """
CREATE TABLE IF NOT EXISTS functions (
    invocation_hash BLOB PRIMARY KEY,
    shutdown_hash   BLOB NOT NULL UNIQUE,
    public_id       TEXT NOT NULL UNIQUE,
    expires_day     INTEGER NOT NULL,
    key_slot        BLOB NOT NULL,
    body            BLOB NOT NULL,
    versions        INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    session_hash    BLOB PRIMARY KEY,
    invocation_hash BLOB NOT NULL,
    outcome         TEXT,
    started_hour    INTEGER NOT NULL
) WITHOUT ROWID;
"""
# A function lives until its days are over, or until the second that it named itself (api.store.expire).
_LIVES = "expires_day > ? AND invocation_hash NOT IN (SELECT invocation_hash FROM endings WHERE ends_at <= ?)"
_LIVING = f"SELECT key_slot, body FROM functions WHERE invocation_hash = ? AND {_LIVES}"  # noqa: S608 - our own words
_SESSION_KEPT_HOURS = 48
_SCHEMA_VERSION = 2
_HOUR_S, _DAY_S = 3600, 86400


class Saved(Enum):
    """What became of a Store."""

    DONE = "done"
    TAKEN = "taken"  # the token is in use for something else
    FULL = "full"
    PAUSED = "paused"  # it is not known, and only what is may be said again


class StoredFunction(msgspec.Struct, frozen=True):
    """A function, opened."""

    manifest: bytes
    source: bytes


class Store:
    """One box's database. Use from one thread at a time.

    function_days  how long a function is kept after it was stored, or stored again
    clock          seconds since the epoch"""

    def __init__(
        self,
        path: Path,
        box: str,
        *,
        max_functions: int,
        function_days: int = 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._box = box
        self._max_functions = max_functions
        self._function_days = function_days
        self._clock = clock
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # FULL: a commit is on disk when it returns. secure_delete: an erased slot is overwritten.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._check_version()
            self._db.executescript(_SCHEMA + blobs.SCHEMA)
        except sqlite3.Error as why:
            raise ConfigError(f"the box's database {path} cannot be used: {why}") from why

    def close(self) -> None:
        """Nothing is lost: every change is committed already."""
        self._db.close()

    # --- functions ------------------------------------------------------------------------------------------

    def save(
        self, invocation: bytes, shutdown: bytes, manifest: bytes, source: bytes, *, paused: bool = False
    ) -> Saved:
        """Seal and keep a function. Saying the same again is DONE again; another function under the token is TAKEN.
        `paused`: nothing new is kept."""
        key = self._hash(tokens.INVOCATION, invocation)
        shutdown_hash = self._hash(tokens.SHUTDOWN, shutdown)
        known = self.maybe_load(invocation)
        if known is not None:
            owner = self._one(
                "SELECT 1 FROM functions WHERE shutdown_hash = ? AND invocation_hash = ?", shutdown_hash, key
            )
            same = _digest(known) == _digest(StoredFunction(manifest, source)) and owner is not None
            if same:
                self._db.execute(
                    "UPDATE functions SET expires_day = ? WHERE invocation_hash = ?", (self._expires_day(), key)
                )
            return Saved.DONE if same else Saved.TAKEN
        if paused:
            return Saved.PAUSED
        # One that has expired, and waits for the sweep, must not keep its token.
        self._erase_where(f"invocation_hash = ? AND NOT ({_LIVES})", key, *self._now())
        if self.count_functions() >= self._max_functions and not self.sweep_old():
            return Saved.FULL
        data_key = tokens.new_data_key()
        body = msgspec.msgpack.encode(StoredFunction(manifest, source))
        try:
            self._db.execute(
                "INSERT INTO functions VALUES (?, ?, ?, ?, ?, ?, 0)",
                (
                    key,
                    shutdown_hash,
                    tokens.public_id(key),
                    self._expires_day(),
                    tokens.seal(tokens.slot_key(self._box, invocation), data_key, key),
                    tokens.seal(data_key, body, key),
                ),
            )
        except sqlite3.IntegrityError:
            return Saved.TAKEN
        return Saved.DONE

    def maybe_load(self, invocation: bytes) -> StoredFunction | None:
        """The function that this token opens, or None."""
        maybe_opened = self._maybe_open(invocation)
        if maybe_opened is None:
            return None
        key, data_key, sealed = maybe_opened
        body = tokens.maybe_unseal(data_key, sealed, key)
        return msgspec.msgpack.decode(body, type=StoredFunction) if body is not None else None

    def maybe_blobs(self, invocation: bytes, *, most_bytes: int, most_blobs: int) -> Blobs | None:
        """What the function of this token keeps; None where the token opens nothing. Holds the data key."""
        maybe_opened = self._maybe_open(invocation)
        if maybe_opened is None:
            return None
        key, data_key, _ = maybe_opened
        most = {"most_bytes": most_bytes, "most_blobs": most_blobs}
        return Blobs(self._db, key, data_key, **most, clock=self._clock)

    def _maybe_open(self, invocation: bytes) -> tuple[bytes, bytes, bytes] | None:
        """The function's hash, its data key, and its sealed body."""
        key = self._hash(tokens.INVOCATION, invocation)
        row = self._one(_LIVING, key, *self._now())
        data_key = tokens.maybe_unseal(tokens.slot_key(self._box, invocation), row[0], key) if row else None
        return (key, data_key, row[1]) if row and data_key else None

    def erase(self, shutdown: bytes) -> bytes | None:
        """Erase the function of this shutdown token, and what is known of its sessions, overwriting both on disk.

        Gives the hash that its sessions are known by, or None where the token opens nothing."""
        erased = self._erase_where("shutdown_hash = ?", self._hash(tokens.SHUTDOWN, shutdown))
        return erased[0] if erased else None

    def erase_public(self, public_id: str) -> bytes | None:
        """The same for the operator, who knows no token: by the id that an abuse report names."""
        erased = self._erase_where("public_id = ?", public_id)
        return erased[0] if erased else None

    def erase_all(self) -> int:
        """Erase every function with what it keeps, and what is known of every session, overwriting all of it on disk.
        Gives the number of functions. Raises ConfigError where the disk does not take it."""
        try:
            erased = self.count_functions()
            # The key slots first, which is little: from here on nobody can read the rest, whatever stops us.
            self._db.execute("UPDATE functions SET key_slot = zeroblob(length(key_slot))")
            self._cut_log()
            with self._db:  # commits, or rolls back
                self._db.execute("BEGIN IMMEDIATE")
                for table in ("pieces", "blobs", "endings", "sessions", "functions"):
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own words
            self._cut_log()
            # secure_delete has overwritten the pages; this gives them back, and their number tells nothing. A full disk
            # has no room for it: then they stay, as zeros.
            with suppress(sqlite3.OperationalError):
                self._db.execute("VACUUM")
            if not self._cut_log():
                raise ConfigError("the box's database cannot be erased: another process reads it")
        except sqlite3.Error as why:
            raise ConfigError(f"the box's database cannot be erased: {why}") from why
        return erased

    def count_functions(self) -> int:
        """How many are kept."""
        row = self._one("SELECT count(*) FROM functions")
        return int(row[0]) if row else 0

    # --- sessions -------------------------------------------------------------------------------------------

    def begin_session(self, session: bytes, invocation: bytes) -> bool:
        """Note on disk that this session starts. False: it did before, and must not start again.

        Also False where the function has meanwhile been erased: what an erasure has passed never starts."""
        function = self._hash(tokens.INVOCATION, invocation)
        try:
            started = self._db.execute(
                f"INSERT INTO sessions SELECT ?, ?, NULL, ? WHERE EXISTS ({_LIVING})",
                (self._hash(tokens.SESSION, session), function, int(self._clock() // _HOUR_S), function, *self._now()),
            )
        except sqlite3.IntegrityError:
            return False
        return started.rowcount == 1

    def cancel_session(self, session_hash: bytes) -> None:
        """It could not start after all; the same token may try again."""
        self._db.execute("DELETE FROM sessions WHERE session_hash = ?", (session_hash,))

    def end_session(self, session_hash: bytes, outcome: str) -> None:
        """Note how it ended."""
        self._db.execute("UPDATE sessions SET outcome = ? WHERE session_hash = ?", (outcome, session_hash))

    def maybe_outcome(self, session_hash: bytes) -> str | None:
        """How a session ended; None where there is no such session, or it runs."""
        row = self._one("SELECT outcome FROM sessions WHERE session_hash = ?", session_hash)
        return str(row[0]) if row and row[0] is not None else None

    def sweep(self) -> int:
        """At start: what a crash left running is lost; what is old is forgotten. Gives the number lost."""
        lost = self._db.execute("UPDATE sessions SET outcome = 'lost' WHERE outcome IS NULL").rowcount
        self._db.execute(blobs.SWEEP)
        self.sweep_old()
        return lost

    def sweep_old(self) -> int:
        """Erase functions whose days are over, and what became of sessions long ago. Gives the number of functions."""
        oldest = int(self._clock() // _HOUR_S) - _SESSION_KEPT_HOURS
        self._db.execute("DELETE FROM sessions WHERE started_hour < ? AND outcome IS NOT NULL", (oldest,))
        return len(self._erase_where("expires_day <= ?", self._today()))

    def sweep_ended(self) -> tuple[list[bytes], float | None]:
        """Erase functions whose own end has come. Gives their hashes, and the seconds until the next one's end; None
        where there is none."""
        now = int(self._clock())
        erased = self._erase_where("invocation_hash IN (SELECT invocation_hash FROM endings WHERE ends_at <= ?)", now)
        row = self._one("SELECT min(ends_at) FROM endings")
        return erased, None if row is None or row[0] is None else max(0.0, row[0] - self._clock())

    # ------------------------------------------------------------------------------------------------------

    def session_hash(self, session: bytes) -> bytes:
        """What a session is known by, on disk and in memory."""
        return self._hash(tokens.SESSION, session)

    def function_hash(self, invocation: bytes) -> bytes:
        """What a function is known by."""
        return self._hash(tokens.INVOCATION, invocation)

    def _hash(self, role: str, token: bytes) -> bytes:
        return tokens.token_hash(role, self._box, token)

    def _now(self) -> tuple[int, int]:
        """What _LIVES asks for."""
        return self._today(), int(self._clock())

    def _today(self) -> int:
        return int(self._clock() // _DAY_S)

    def _expires_day(self) -> int:
        return self._today() + self._function_days

    def _erase_where(self, condition: str, *values: bytes | str | int) -> list[bytes]:
        """Erase functions, and what is known of their sessions, overwriting both; gives the functions' hashes."""
        found = self._db.execute(f"SELECT invocation_hash FROM functions WHERE {condition}", values).fetchall()  # noqa: S608 - our own words
        if not found:
            return []
        self._db.execute("BEGIN IMMEDIATE")
        for row in found:
            self._db.execute("DELETE FROM functions WHERE invocation_hash = ?", row)
            self._db.execute("DELETE FROM sessions WHERE invocation_hash = ?", row)
        self._db.execute("COMMIT")
        self._cut_log()
        return [bytes(row[0]) for row in found]

    def _cut_log(self) -> bool:
        """The log still holds the old pages: move the overwritten ones into the file, and cut the log. False: somebody
        else reads it."""
        return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]

    def _one(self, query: str, *values: bytes | int) -> tuple[Any, ...] | None:
        with closing(self._db.execute(query, values)) as cursor:
            row: tuple[Any, ...] | None = cursor.fetchone()
            return row

    def _check_version(self) -> None:
        with closing(self._db.execute("PRAGMA user_version")) as cursor:
            found = cursor.fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise ConfigError(f"the box's database is of version {found}; this bento-tor knows {_SCHEMA_VERSION}")
        self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _digest(function: StoredFunction) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(function)).digest()
