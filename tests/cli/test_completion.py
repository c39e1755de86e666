"""Shell completion, in the real shells where they are installed; bash always is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bento_tor.client import keyring
from bento_tor.client.keyring import Kept, KeptSession


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENTO_TOR_KEYRING", str(tmp_path / "keyring.json"))
    with keyring.changing() as ring:
        ring.functions |= {"mine": Kept("unix:/x", b"i" * 32), "$(evil)": Kept("unix:/x", b"j" * 32)}
        ring.sessions |= {
            "mine.1": KeptSession("unix:/x", "mine", b"t" * 32),
            "mine.2": KeptSession("unix:/x", "mine", b"u" * 32, state="returned"),
        }
        ring.policies["a" * 56 + ".onion"] = b"d" * 32
    program = tmp_path / "bento-tor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bento_tor.cli "$@"\n')
    program.chmod(0o755)
    return tmp_path


def complete(home: Path, line: str) -> list[str]:
    """What bash offers for the last word of the line."""
    script = f"""
eval "$(bento-tor completion bash)"
COMP_WORDS=({line}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
compopt() {{ echo "files"; }}
_bento_tor_completion bento-tor
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True, text=True, timeout=60, cwd=home,
        env=os.environ | {"PATH": f"{home}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bento-tor comp", ["completion"]),
        ("bento-tor client att", ["attach"]),
        ("bento-tor client keys for", ["forget"]),
        ("bento-tor client exec m", ["mine"]),
        ("bento-tor client exec ''", ["mine"]),
        ("bento-tor client attach m", ["mine.1"]),
        ("bento-tor client logs m", ["mine.1", "mine.2"]),
        ("bento-tor client run hel", ["hello"]),
        ("bento-tor client run ./x", ["files"]),
        ("bento-tor fun", ["function"]),
        ("bento-tor function t", ["test"]),
        ("bento-tor function test hel", ["hello"]),
        ("bento-tor function check ./x", ["files"]),
        ("bento-tor function show ech", ["echo"]),
        ("bento-tor client run hello --box aaa", ["a" * 56 + ".onion"]),
        ("bento-tor client keys rename m", ["mine", "mine.1", "mine.2"]),
        ("bento-tor completion z", ["zsh"]),
    ],
)
def test_bash_completes(home: Path, line: str, offered: list[str]) -> None:
    assert complete(home, line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_own(home: Path, shell: str) -> None:
    done = subprocess.run(["./bento-tor", "completion", shell], capture_output=True, text=True, cwd=home, timeout=60)
    assert f"{shell}_complete" in done.stdout and "bento-tor" in done.stdout


def test_a_broken_keyring_completes_nothing_and_says_nothing(home: Path) -> None:
    (home / "keyring.json").write_text("{")
    assert complete(home, "bento-tor client exec m") == []
