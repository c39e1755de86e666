"""Cases 1 to 42 and 59: every row of the table, behind a real keeper and real sessions; again as an ordinary user."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import psutil
import pytest

from bento_tor.policy.limits import MIB
from bento_tor.sandbox.hostile import ROWS
from bento_tor.server.rehearsal import Rehearsal

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
# So few that one that is not given back is missed.
UIDS = range(1_880_090_001, 1_880_090_005)
SPARE_BYTES = 4 * MIB
IDS = [row.id for row in ROWS]


@pytest.fixture(scope="module")
def left_behind(load):
    return load(HERE / "left.py").left_behind


@pytest.fixture(scope="module")
def rehearsal(image):
    assert platform.machine() == "x86_64", "the table's system call numbers are of x86-64"
    with Rehearsal(image, uids=UIDS if os.geteuid() == 0 else None) as rehearsal:
        rehearsal.play(ROWS[-1])  # what is imported and kept once is no leak
        yield rehearsal


def state(pid):
    process = psutil.Process(pid)
    return process.num_fds(), process.memory_info().rss, Path(f"/proc/{pid}/mountinfo").read_text()


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_hostile_function(rehearsal, left_behind, row, note):
    files, memory, mounts = state(rehearsal.pid)
    played = rehearsal.play(row)
    note("here", row.number, row.name, " ".join([played.word, *played.said]))
    root = os.geteuid() == 0
    assert played.problems(row, root=root, cgroups="memory" in rehearsal.effective) == [], played.log
    deadline = time.monotonic() + 5
    while (left := left_behind(rehearsal.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []
    files_after, memory_after, mounts_after = state(rehearsal.pid)
    assert files_after <= files
    assert memory_after <= memory * 1.05 + SPARE_BYTES
    assert mounts_after == mounts


@pytest.fixture(scope="module")
def told(image, ordinary_user):
    """What rootless_table.py tells."""
    ordinary_user.add(HERE / "rootless_table.py", HERE / "left.py")
    answer = ordinary_user.run("rootless_table", str(image.path.parent))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_hostile_function_of_an_ordinary_users_box(told, row, note):
    played = told[row.id]
    note("rootless", row.number, row.name, " ".join([played["word"], *played["said"]]))
    assert played["problems"] == [], played["log"]
    assert played["left"] == []


def test_what_differs_is_noticed(rehearsal):
    """Else a table that expects anything would be green."""
    row = ROWS[0]
    played = rehearsal.play(row)
    expected = {"root": os.geteuid() == 0, "cgroups": "memory" in rehearsal.effective}
    for other in ROWS:
        if (other.word, other.said) != (row.word, row.said) and "EAGAIN" not in other.said:
            assert played.problems(other, **expected), other.id
