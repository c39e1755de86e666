"""Every row of the table, in the real jail behind a real keeper; and again as an ordinary user."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import pyseccomp
import pytest

import bento_tor
from bento_tor.policy.limits import MIB

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
ORDINARY_UID = 54_322
ANSWER_S = 10.0
SPARE_BYTES = 4 * MIB


def load(name):
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table, player = load("table"), load("player")
IDS = [row.id for row in table.ROWS]


@pytest.fixture(scope="module")
def play(image, runner):
    assert platform.machine() == "x86_64", "the table's system call numbers are of x86-64"
    with player.keeper(image, runner) as play:
        play.play(table.ROWS[-1], table.PRELUDE)  # what is imported and kept once is no leak
        yield play


def state(pid):
    process = psutil.Process(pid)
    return process.num_fds(), process.memory_info().rss, Path(f"/proc/{pid}/mountinfo").read_text()


@pytest.mark.parametrize("row", table.ROWS, ids=IDS)
def test_a_hostile_function(play, row, note):
    files, memory, mounts = state(play.pid)
    played = play.play(row, table.PRELUDE)
    note("here", row.id, " ".join([played.word, *played.said]))
    rootless = os.geteuid() != 0
    assert problems(row, vars(played), rootless=rootless) == []
    deadline = time.monotonic() + 5
    while (left := player.left_behind(play.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []
    files_after, memory_after, mounts_after = state(play.pid)
    assert files_after <= files
    assert memory_after <= memory * 1.05 + SPARE_BYTES
    assert mounts_after == mounts


def problems(row, played, *, rootless):
    """How what came of it differs from what the row expects."""
    word = (rootless and row.rootless) or row.word
    said = (rootless and row.rootless_said) or row.said
    answer = (rootless and row.rootless_answer) or row.answer
    found = []
    if played["word"] not in word.split("|"):
        found.append(f"ended as {played['word']}, not {word}: {played['log']}")
    if said and (len(played["said"]) != 1 or played["said"][0] not in said.split("|")):
        found.append(f"said {played['said']}, not {said}")
    if played["bystander"] != [answer]:
        found.append(f"the bystander said {played['bystander']}, not {answer}")
    if played["answered_s"] > ANSWER_S:
        found.append(f"the bystander waited {played['answered_s']:.1f} s")
    return found


@pytest.fixture(scope="module")
def told(image):
    """What rootless_table.py tells. It runs from a copy: the repository may be in a private home."""
    with tempfile.TemporaryDirectory(prefix="bento-hostile-") as copy:
        for package in (Path(bento_tor.__file__).parent, Path(msgspec.__file__).parent):
            shutil.copytree(package, Path(copy) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        files = [HERE / f"{name}.py" for name in ("table", "player", "rootless_table")]
        for file in (*files, HERE.parent / "sandbox" / "runner.py", pyseccomp.__file__):
            shutil.copy(file, copy)
        subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
        command = ["/usr/bin/python3", "-I", "-B", f"{copy}/rootless_table.py", str(image.path.parent), copy]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", *command]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)


@pytest.mark.parametrize("row", table.ROWS, ids=IDS)
def test_a_hostile_function_of_an_ordinary_users_box(told, row, note):
    played = told[row.id]
    note("rootless", row.id, " ".join([played["word"], *played["said"]]))
    assert problems(row, played, rootless=True) == []
    assert played["left"] == []


def test_no_case_is_missing():
    assert {row.number for row in table.ROWS} == {*range(1, 43), 59}
