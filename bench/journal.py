"""The folder of a fingerprinting run: which visits there are to be, which were made, and their traces.

    run.json                     with what it was begun; a run with other numbers does not go on in this folder
    visits.jsonl                 a line for each visit, also for those that failed
    CONDITION/SITE-VISIT.cell    a trace (see `cells`)
    CONDITION/failed/...         traces of visits that failed, and were made again: the file's name has a number more

A visit counts once its line is there, and its trace is written before that. So a run can be stopped at any moment, and
goes on where it was.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cells
from cells import Cell

from bento_tor.errors import ConfigError


@dataclass(frozen=True)
class Visit:
    """One that is to be made."""

    condition: str
    site: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.site}-{self.number}"


@dataclass(frozen=True)
class Made:
    """One that was made. `outcome`: page, error (as it should be, of a page that is one), or failed, with `why`.

    seconds         to the page's last byte, for its user
    cells_out, cells_in  in its trace
    told_in         cells that tor itself counted on its circuits, towards us; -1: tor was not asked
    observed        the class that an observer can tell by design
    took_s          all that the visit took here, with circuits and waits"""

    condition: str
    site: int
    number: int
    outcome: str
    file: str
    page_bytes: int = 0
    seconds: float = 0.0
    cells_out: int = 0
    cells_in: int = 0
    told_in: int = -1
    observed: str = ""
    took_s: float = 0.0
    why: str = ""

    @property
    def visit(self) -> Visit:
        return Visit(self.condition, self.site, self.number)

    @property
    def failed(self) -> bool:
        return self.outcome == "failed"


def plan(conditions: Sequence[str], sites: int, visits: int, seed: int) -> list[Visit]:
    """Every visit of every condition, in an order in which nothing that changes with time can tell them apart."""
    listed = [
        Visit(condition, site, number) for condition in conditions for site in range(sites) for number in range(visits)
    ]
    random.Random(seed).shuffle(listed)
    return listed


class Journal:
    """One folder. Opened by `open_journal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = self._path.read_text() if self._path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:  # the machine went down in the middle of it
            self._path.write_text(f"{whole}\n" if whole else "")
        self.made = [Made(**json.loads(line)) for line in whole.splitlines()]

    @property
    def _path(self) -> Path:
        return self.folder / "visits.jsonl"

    @property
    def good(self) -> list[Made]:
        """Those that count; each visit once."""
        return list({made.visit: made for made in self.made if not made.failed}.values())

    def left(self, visits: Iterable[Visit]) -> list[Visit]:
        """Those that are still to be made, in their order."""
        done = {made.visit for made in self.good}
        return [visit for visit in visits if visit not in done]

    def tries(self, visit: Visit) -> int:
        """How often it has failed."""
        return Counter(made.visit for made in self.made if made.failed)[visit]

    def place(self, visit: Visit, *, failed: bool) -> str:
        """Where its trace goes, within the folder."""
        if failed:
            return f"{visit.condition}/failed/{visit.name}-{self.tries(visit)}.cell"
        return f"{visit.condition}/{visit.name}.cell"

    def add(self, made: Made, trace: Sequence[Cell]) -> None:
        """The trace, then the line."""
        path = self.folder / made.file
        path.parent.mkdir(parents=True, exist_ok=True)
        cells.write(path, trace)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(made)) + "\n")
        self.made.append(made)

    def traces(self, condition: str) -> list[tuple[Made, list[Cell]]]:
        """The good visits of a condition, with their traces."""
        return [(made, cells.read(self.folder / made.file)) for made in self.good if made.condition == condition]


def open_journal(folder: Path, begun_with: dict[str, object]) -> Journal:
    """The folder's journal, made where there is none. Raises ConfigError where it was begun with other numbers."""
    path = folder / "run.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(begun_with, indent=1) + "\n")
        before = json.loads(path.read_text())
    except (OSError, ValueError) as why:
        raise ConfigError(f"{folder} cannot hold a run: {why}", hint="name another folder with --out") from why
    other = sorted(key for key in begun_with if before.get(key) != begun_with[key])
    if other:
        raise ConfigError(
            f"the run in {folder} was begun with another {', another '.join(other)}",
            hint="the same numbers go on with it; another --out begins anew",
        )
    return Journal(folder)
