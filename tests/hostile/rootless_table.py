"""Runs the table as an ordinary user, by the system's Python, from a copy. Prints JSON: row -> what came of it.

Arguments: the image's directory, the directory of this copy."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, sys.argv[2])

import player  # noqa: E402
import runner  # noqa: E402
import table  # noqa: E402

from bento_tor.sandbox import images  # noqa: E402


def main() -> None:
    told = {}
    with player.keeper(images.load(Path(sys.argv[1]), "python"), runner) as play:
        for row in table.ROWS:
            told[row.id] = {**asdict(play.play(row, table.PRELUDE)), "left": player.left_behind(play.pid)}
    print(json.dumps(told))


main()
