"""Plays the table as an ordinary user, by the system's Python, from a copy. Prints JSON: row -> what came of it.

Argument: the directory of images."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from left import left_behind

from bento_tor.sandbox import images
from bento_tor.sandbox.hostile import ROWS
from bento_tor.server.rehearsal import Rehearsal


def main() -> None:
    told = {}
    with Rehearsal(images.load(Path(sys.argv[1]), "python")) as rehearsal:
        cgroups = "memory" in rehearsal.effective
        for row in ROWS:
            played = rehearsal.play(row)
            problems = played.problems(row, root=False, cgroups=cgroups)
            told[row.id] = {**asdict(played), "problems": problems, "left": left_behind(rehearsal.pid)}
    print(json.dumps(told))


main()
