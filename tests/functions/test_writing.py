"""docs/writing-functions.md: its files are written, its lines are typed, and say what the page says they do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bento_tor.cli.demo import BOX_POLICY
from bento_tor.client import template
from bento_tor.policy.manifest import Manifest
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import offered

PAGE = (Path(__file__).parent.parent.parent / "docs" / "writing-functions.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# The page sends its readers to the demo's box.
CONFIG = f"ready = 1\n[policy]\n{BOX_POLICY}"


def typed(block: str) -> Iterator[tuple[str, str]]:
    """Each line that is typed, and what comes of it."""
    yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


@pytest.mark.sandbox
def test_the_page_does_what_it_says(new_box, tmp_path: Path) -> None:
    box = new_box(config=CONFIG)
    work = tmp_path / "work"
    work.mkdir()
    program = tmp_path / "bento-tor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bento_tor.cli "$@"\n')
    program.chmod(0o755)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("BENTO_TOR")}
    ours = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "BENTO_TOR_BOX": box.address,
        "BENTO_TOR_KEYRING": str(tmp_path / "k"),
    }
    for kind, text in BLOCKS:
        if kind == "python":
            named = re.match(r"# (\w+\.py)\n", text)
            assert named, text
            (work / named[1]).write_text(text)
            continue
        assert kind == "console", kind
        for command, output in typed(text):
            done = subprocess.run(
                ["bash", "-c", command], cwd=work, env=plain | ours, capture_output=True, text=True, timeout=120
            )
            if command.endswith("2>&1"):
                # What is being done is said there too.
                lines = iter(done.stdout.splitlines())
                assert all(line in lines for line in output.splitlines()), (command, done.stdout)
            else:
                form = re.escape(output).replace(re.escape("..."), ".*")
                assert re.fullmatch(form, done.stdout), (command, done.stdout, done.stderr)


def test_every_function_of_the_page_is_used_in_it() -> None:
    files = re.findall(r"^# (\w+\.py)$", PAGE, re.MULTILINE)
    commands = [command for kind, text in BLOCKS if kind == "console" for command, _ in typed(text)]
    assert len(files) == 8
    assert [name for name in files if not any(f" {name}" in command for command in commands)] == []


def test_its_table_of_keys_is_the_manifests() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| ", PAGE, re.MULTILINE)
    defaults = dict(zip(Manifest.__struct_fields__, Manifest.__struct_defaults__, strict=True))
    del defaults["packages"]
    assert rows == [(key, json.dumps(value)) for key, value in defaults.items()]


def test_it_tells_of_every_word_of_api() -> None:
    rows = re.findall(r"^\| `(api\.[\w.]+)", PAGE, re.MULTILINE)
    verbs = set(offered.verbs())
    # A part's own name is told by its words; an exception by who raises it.
    parts = {verb for verb in verbs if any(other.startswith(f"{verb}.") for other in verbs)}
    assert {f"api.{verb}" for verb in verbs - parts} - {*rows, "api.store.Conflict"} == set()
    assert {row.removeprefix("api.") for row in rows} <= verbs
    assert "api.store.Conflict" in PAGE


def test_it_tells_of_every_outcome() -> None:
    assert [kind.value for kind in Kind if f"`{kind.value}" not in PAGE] == []


def test_a_template_explains_every_key() -> None:
    text = template.render("mine")
    meanings = template.meanings_of_keys()
    assert all(meanings.values())
    assert all(re.search(rf"^# (# )?{key} = .* # ", text, re.MULTILINE) for key in meanings)
