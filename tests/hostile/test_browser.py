"""The table again in the image `browser`: its own rows, and those that have more to see or to start there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bento_tor.sandbox import images
from bento_tor.sandbox.hostile_browser import BROWSER_ROWS, rows_for
from bento_tor.server.rehearsal import Rehearsal

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
AGAIN = (13, 14, 20, 21, 22, 23, 25, 28, 29, 30, 31, 39, 42)


@pytest.fixture(scope="module")
def rehearsal(browser_image):
    with Rehearsal(browser_image) as rehearsal:
        yield rehearsal


ROWS = [row for row in rows_for(images.Image(*[""] * 8, browser="any")) if row in BROWSER_ROWS or row.number in AGAIN]


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_hostile_function_in_the_image_browser(rehearsal, load, row, note):
    played = rehearsal.play(row)
    note("browser", row.number, row.name, " ".join([played.word, *played.said]))
    cgroups = "memory" in rehearsal.effective
    assert played.problems(row, root=os.geteuid() == 0, cgroups=cgroups, browser=True) == [], played.log
    left_behind = load(HERE / "left.py").left_behind
    deadline = time.monotonic() + 5
    while (left := left_behind(rehearsal.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []
