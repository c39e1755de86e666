"""The keyring: for its owner only, never half written, never lost to two commands at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bento_tor.client import keyring
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.errors import ConfigError


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "folder" / "keyring.json"
    monkeypatch.setenv("BENTO_TOR_KEYRING", str(place))
    return place


def add(name: str) -> None:
    with keyring.changing() as ring:
        ring.functions[name] = Kept("box", b"i" * 32)


def test_only_its_owner_can_read_it(path: Path) -> None:
    add("f")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyring.read().functions["f"] == Kept("box", b"i" * 32)


def test_where_there_is_none_it_is_empty() -> None:
    assert keyring.read() == keyring.Keyring()


def test_a_block_that_fails_changes_nothing() -> None:
    add("f")
    with pytest.raises(RuntimeError), keyring.changing() as ring:
        ring.functions.clear()
        raise RuntimeError
    assert "f" in keyring.read().functions


def test_two_commands_at_once_lose_nothing() -> None:
    code = """
import sys
from bento_tor.client import keyring
for number in range(20):
    with keyring.changing() as ring:
        ring.functions[f"{sys.argv[1]}{number}"] = keyring.Kept("box", b"i" * 32)
"""
    commands = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "abcd"]
    assert [command.wait(timeout=60) for command in commands] == [0, 0, 0, 0]
    assert len(keyring.read().functions) == 80


def test_a_damaged_one_is_kept_and_said(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        keyring.read()
    with pytest.raises(ConfigError), keyring.changing():
        pass
    assert path.read_text() == "{"


def test_a_name_that_is_taken_gets_a_number() -> None:
    ring = keyring.Keyring(functions={"f": Kept("b", b""), "f-2": Kept("b", b"")})
    assert (ring.free_name("f"), ring.free_name("g")) == ("f-3", "g")


def test_sessions_are_numbered_and_found_by_their_token() -> None:
    ring = keyring.Keyring(functions={"f.1": Kept("b", b"")})
    kept = KeptSession("b", "f", b"t" * 32)
    assert (ring.add_session("f", kept), ring.add_session("f", kept)) == ("f.2", "f.3")
    assert ring.maybe_session("b", b"t" * 32) == "f.2" and ring.maybe_session("c", b"t" * 32) is None


def test_reconnections_are_counted_over_processes() -> None:
    ledger = keyring.KeptLedger("box")
    with ledger.changing() as times:
        times.append(1.0)
    with keyring.KeptLedger("box").changing() as times:
        assert times == [1.0]
    with keyring.KeptLedger("other").changing() as times:
        assert times == []


def test_a_box_is_forgotten_with_all_that_is_known_of_it() -> None:
    ring = keyring.Keyring(policies={"box": b"d"}, signed=["box"], reconnects={"box": [1.0]})
    ring.forget("box")
    assert ring == keyring.Keyring()


def test_a_keyring_of_before_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"functions": {}, "sessions": {"f.1": {"box": "b", "function": "f", "session": "dA=="}}}')
    assert keyring.read().sessions["f.1"].state == keyring.RUNNING
