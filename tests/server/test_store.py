"""The store: what it keeps is sealed, what it acknowledged stays, what is erased is gone from the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bento_tor.errors import ConfigError
from bento_tor.server import tokens
from bento_tor.server.store import Saved, Store, StoredFunction

BOX = "a" * 56 + ".onion"
SECRET = b"def f(): return 'a text that must not be on the disk'"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box.db"


def open_store(path: Path, *, box: str = BOX, max_functions: int = 10) -> Store:
    return Store(path, box, max_functions=max_functions)


def token() -> bytes:
    return os.urandom(32)


def disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def test_a_function_comes_back_by_its_token_alone(path: Path) -> None:
    store, invocation = open_store(path), token()
    assert store.save(invocation, token(), b"manifest", SECRET) is Saved.DONE
    assert store.maybe_load(invocation) == StoredFunction(b"manifest", SECRET)
    assert store.maybe_load(token()) is None


def test_neither_code_nor_tokens_are_on_the_disk(path: Path) -> None:
    store, invocation, shutdown, session = open_store(path), token(), token(), token()
    store.save(invocation, shutdown, b"manifest-text", SECRET)
    store.begin_session(session, invocation)
    store.close()
    for secret in (b"must not be on the disk", b"manifest-text", invocation, shutdown, session):
        assert secret not in disk(path)


def test_saying_it_twice_stores_it_once(path: Path) -> None:
    store, invocation, shutdown = open_store(path), token(), token()
    assert [store.save(invocation, shutdown, b"m", SECRET) for _ in range(2)] == [Saved.DONE, Saved.DONE]
    assert store.count_functions() == 1


def test_a_token_in_use_takes_no_other_function(path: Path) -> None:
    store, invocation, shutdown = open_store(path), token(), token()
    store.save(invocation, shutdown, b"m", SECRET)
    assert store.save(invocation, shutdown, b"m", b"other") is Saved.TAKEN
    assert store.save(invocation, token(), b"m", SECRET) is Saved.TAKEN
    assert store.save(token(), shutdown, b"m", SECRET) is Saved.TAKEN


def test_a_full_box_says_so(path: Path) -> None:
    store = open_store(path, max_functions=1)
    store.save(token(), token(), b"m", SECRET)
    assert store.save(token(), token(), b"m", SECRET) is Saved.FULL


def test_a_token_is_useless_at_another_box_and_in_another_role(path: Path) -> None:
    invocation, shutdown = token(), token()
    open_store(path).save(invocation, shutdown, b"m", SECRET)
    assert open_store(path, box="b" * 56 + ".onion").maybe_load(invocation) is None
    assert open_store(path).maybe_load(shutdown) is None
    assert open_store(path).erase(invocation) is None


def test_erasing_takes_the_sealed_bytes_off_the_disk(path: Path) -> None:
    store, invocation, shutdown = open_store(path), token(), token()
    store.save(invocation, shutdown, b"m", SECRET)
    sealed = store._one("SELECT key_slot FROM functions")
    assert sealed is not None and sealed[0] in disk(path)
    assert store.erase(shutdown) == store.function_hash(invocation)
    assert sealed[0] not in disk(path)
    assert store.maybe_load(invocation) is None
    assert store.erase(shutdown) is None


def test_a_session_starts_once(path: Path) -> None:
    store, session, invocation = open_store(path), token(), token()
    store.save(invocation, token(), b"m", SECRET)
    assert store.begin_session(session, invocation)
    assert not store.begin_session(session, invocation)


def test_nothing_starts_that_has_been_erased(path: Path) -> None:
    store, invocation, shutdown = open_store(path), token(), token()
    store.save(invocation, shutdown, b"m", SECRET)
    store.erase(shutdown)
    assert not store.begin_session(token(), invocation)


def test_what_a_crash_left_running_is_lost(path: Path) -> None:
    store, running, ended, invocation = open_store(path), token(), token(), token()
    store.save(invocation, token(), b"m", SECRET)
    store.begin_session(running, invocation)
    store.begin_session(ended, invocation)
    store.end_session(store.session_hash(ended), "returned")
    store.close()
    store = open_store(path)
    assert store.sweep() == 1
    assert store.maybe_outcome(store.session_hash(running)) == "lost"
    assert store.maybe_outcome(store.session_hash(ended)) == "returned"
    assert store.maybe_outcome(store.session_hash(token())) is None


def test_a_damaged_row_opens_nothing(path: Path) -> None:
    store, invocation = open_store(path), token()
    store.save(invocation, token(), b"m", SECRET)
    store._db.execute("UPDATE functions SET body = x'00'")
    assert store.maybe_load(invocation) is None


def test_a_file_that_is_no_database_is_refused_in_words(path: Path) -> None:
    path.write_bytes(b"this is not a database, and long enough to be read as one" * 20)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_store(path)


def test_a_database_of_the_future_is_refused(path: Path) -> None:
    store = open_store(path)
    store._db.execute("PRAGMA user_version=99")
    store.close()
    with pytest.raises(ConfigError, match="version 99"):
        open_store(path)


class Clock:
    """Days that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 20_000 * 86_400.0

    def __call__(self) -> float:
        return self.now_s

    def pass_days(self, days: float) -> None:
        self.now_s += days * 86_400


def test_a_function_expires_and_is_off_the_disk_after_the_sweep(path: Path) -> None:
    clock, invocation, kept = Clock(), token(), token()
    store = Store(path, BOX, max_functions=10, function_days=3, clock=clock)
    store.save(invocation, token(), b"m", SECRET)
    sealed = store._one("SELECT key_slot FROM functions")
    clock.pass_days(2)
    store.save(kept, token(), b"m", SECRET)
    assert store.maybe_load(invocation) is not None
    clock.pass_days(1)
    # Before the sweep has come by, too: expired is unknown.
    assert store.maybe_load(invocation) is None
    assert not store.begin_session(token(), invocation)
    assert sealed is not None and sealed[0] in disk(path)
    assert store.sweep_old() == 1
    assert sealed[0] not in disk(path)
    assert store.maybe_load(kept) is not None and store.count_functions() == 1


def test_storing_it_again_makes_it_live_longer(path: Path) -> None:
    clock, invocation, shutdown = Clock(), token(), token()
    store = Store(path, BOX, max_functions=1, function_days=3, clock=clock)
    store.save(invocation, shutdown, b"m", SECRET)
    clock.pass_days(2)
    assert store.save(invocation, shutdown, b"m", SECRET) is Saved.DONE
    clock.pass_days(2)
    assert store.maybe_load(invocation) is not None
    clock.pass_days(9)
    assert store.save(invocation, shutdown, b"m", SECRET) is Saved.DONE, "its own token is free again"
    assert store.maybe_load(invocation) is not None


def test_an_hourly_sweep_loses_no_session_that_runs(path: Path) -> None:
    clock, running, ended, invocation = Clock(), token(), token(), token()
    store = Store(path, BOX, max_functions=1, function_days=9, clock=clock)
    store.save(invocation, token(), b"m", SECRET)
    store.begin_session(running, invocation)
    store.begin_session(ended, invocation)
    store.end_session(store.session_hash(ended), "returned")
    clock.pass_days(3)
    assert store.sweep_old() == 0
    assert store.maybe_outcome(store.session_hash(ended)) is None
    store.end_session(store.session_hash(running), "returned")
    assert store.maybe_outcome(store.session_hash(running)) == "returned"


def test_the_public_id_erases_and_opens_nothing(path: Path) -> None:
    store, invocation, shutdown = open_store(path), token(), token()
    store.save(invocation, shutdown, b"m", SECRET)
    name = tokens.public_id(store.function_hash(invocation))
    assert len(name) == 16 and name.isalnum()
    assert store.maybe_load(name.encode()) is None and store.erase(name.encode()) is None
    assert store.erase_public("a" * 16) is None and store.erase_public("' OR 1 --") is None
    assert store.erase_public(name) == store.function_hash(invocation)
    assert store.maybe_load(invocation) is None and store.erase(shutdown) is None
