"""The keyring: for its owner only, never half written, never lost to two commands at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bento_tor.client import keyring
from bento_tor.client.keyring import Kept
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
