"""What an observer of the client's link tells of the pages that are visited: direct through Tor, by `browser`, covered.

Pages are synthetic (sites.py), and served in a namespace with no way out. A recorder between the client and its guards
notes TLS records (recorder.py), cells are counted in them (cells.py), and the field's attacks are tried on the cells,
with time and without (attacks.py). Visits are made one at a time, by circuits of their own that stood before, in an
order that is shuffled over pages and conditions. The folder of --out keeps every trace in the field's format; a run
that was stopped goes on there. Needs root, and `pip install bento-tor[bench]`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cells
import findings
import lab
import sites
from cells import Record
from journal import Journal, Made, Visit, open_journal, plan
from lab import Lab, Web
from visits import Condition, make_conditions

from bento_tor.client.cover import Pace
from bento_tor.controller.tor import Events
from bento_tor.errors import BentoError

SEED = 1
OUT = Path(".cache/fingerprint")
_QUIET_S = 0.2
_MOST_QUIET_S = 20.0
# Of every so many visits tor is asked what it counted. It says so once a second.
_CHECK_EVERY = 10
_TOLD_EVERY_S = 1.25
_RELAY_BYTES = 509
_MOST_TRIES = 4
_MOST_IN_A_ROW = 6
_MOST_LABS = 5
_SAY_EVERY = 20


class Link:
    """What the recorder has written, as it comes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place = 0

    def wait_quiet(self) -> None:
        """Until nothing passes any more. Raises BentoError where something always does."""
        deadline, before, since = time.monotonic() + _MOST_QUIET_S, -1, 0.0
        while time.monotonic() < deadline:
            now, size = time.monotonic(), self._file.stat().st_size
            if size != before:
                before, since = size, now
            elif now - since >= _QUIET_S:
                return
            time.sleep(0.02)
        raise BentoError("the link is never quiet")

    def take(self) -> list[Record]:
        """All records since the last time."""
        with self._file.open() as file:
            file.seek(self._place)
            text = file.read()
        whole = text.rpartition("\n")[0]
        self._place += len(whole) + 1 if whole else 0
        return cells.parse_records(whole.splitlines())


class Capture:
    """Makes visits, and keeps them in the journal."""

    def __init__(self, at: Lab, link: Link, journal: Journal, pages: Sequence[sites.Site]) -> None:
        self._at = at
        self._link = link
        self._journal = journal
        self._pages = pages

    def make(self, condition: Condition, visit: Visit, *, checked: bool) -> Made:
        """One visit. What goes wrong in it is kept, too."""
        begun = time.monotonic()
        identity = f"{condition.name} {visit.name} {begun}"
        way = self._at.ways["exit" if condition.name == "direct" else "onion"]
        self._link.take()
        try:
            condition.warm(self._at, self._pages[visit.site], identity)
            self._link.wait_quiet()
            made = self._record(condition, visit, identity, checked=checked)
        except (BentoError, OSError, http.client.HTTPException) as why:
            made = Made(*_key(visit), "failed", self._journal.place(visit, failed=True), why=str(why) or repr(why))
        trace, left_over = cells.count_cells(self._link.take())
        if left_over and not made.failed:
            file = self._journal.place(visit, failed=True)
            made = replace(made, outcome="failed", file=file, why="a handshake in the middle of the visit")
        going_out = sum(cell.direction == cells.OUT for cell in trace)
        took_s = time.monotonic() - begun
        made = replace(made, cells_out=going_out, cells_in=len(trace) - going_out, took_s=round(took_s, 3))
        self._journal.add(made, trace)
        self._at.end_circuits(way, identity)
        return made

    def _record(self, condition: Condition, visit: Visit, identity: str, *, checked: bool) -> Made:
        """From silence to silence."""
        if checked:
            with self._at.circuit_bytes() as events:
                _told_cells(events)  # what was before
                self._link.wait_quiet()
                made = self._record(condition, visit, identity, checked=False)
                return replace(made, told_in=_told_cells(events))
        self._link.take()
        got = condition.visit(self._at, self._pages[visit.site], identity)
        self._link.wait_quiet()
        file, seconds = self._journal.place(visit, failed=False), round(got.seconds, 4)
        return Made(*_key(visit), got.outcome, file, got.page_bytes, seconds, observed=got.observed)


def _key(visit: Visit) -> tuple[str, int, int]:
    return visit.condition, visit.site, visit.number


def _told_cells(events: Events) -> int:
    """Relay cells towards us since the last time, as tor counts them, on all circuits."""
    told = sum(int(event.keyword("READ") or 0) for event in events.until(time.monotonic() + _TOLD_EVERY_S))
    return told // _RELAY_BYTES


def capture(options: argparse.Namespace, journal: Journal, conditions: dict[str, Condition]) -> None:
    """All visits that are still to be made, in a new laboratory where one breaks. Raises BentoError where too much goes
    wrong; what was made stays."""
    for number in range(1, _MOST_LABS + 1):
        try:
            _capture_in_a_lab(options, journal, conditions)
            return
        except BentoError as why:
            if number == _MOST_LABS:
                raise
            print(f"once more from the network on: {why.message}", file=sys.stderr, flush=True)


def _capture_in_a_lab(options: argparse.Namespace, journal: Journal, conditions: dict[str, Condition]) -> None:
    wanted = plan(options.conditions, options.sites, options.visits, SEED)
    left = journal.left(wanted)
    if not left:
        return
    print(f"{len(left)} of {len(wanted)} visits to make, in {journal.folder}", file=sys.stderr, flush=True)
    pages = sites.make_sites(options.sites, SEED)
    web = Web("sites.py", (str(options.sites), str(SEED)), sites.ADDRESSES)
    with tempfile.TemporaryDirectory() as folder, lab.open_lab(delay_ms=options.delay_ms, maybe_web=web) as at:
        file = Path(folder) / "records"
        with at.recorded(file):
            at.be_quiet()
            capturing = Capture(at, Link(file), journal, pages)
            _make_all(capturing, journal, conditions, left)


def _make_all(capturing: Capture, journal: Journal, conditions: dict[str, Condition], left: list[Visit]) -> None:
    """In their order; those that fail once more at the end."""
    in_a_row, count = 0, 0
    while left:
        visit = left.pop(0)
        made = capturing.make(conditions[visit.condition], visit, checked=count % _CHECK_EVERY == 0)
        count += 1
        in_a_row = in_a_row + 1 if made.failed else 0
        if made.failed:
            print(f"{visit.condition} {visit.name} failed: {made.why}", file=sys.stderr, flush=True)
            if journal.tries(visit) >= _MOST_TRIES or in_a_row >= _MOST_IN_A_ROW:
                raise BentoError(f"too many visits fail: {made.why}", hint="what was made stays; begin again to go on")
            left.append(visit)
        text = f"{len(left)} visits left, {time_left(journal.made, left)}; the last: {visit.condition} {visit.name}"
        lab.say(text)
        if count % _SAY_EVERY == 0 and not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)


def time_left(made: Sequence[Made], left: Sequence[Visit]) -> str:
    """As visits of the same condition took; a condition without any takes as long as the others."""
    every = [each.took_s for each in made]
    by_condition = {each.condition: [one.took_s for one in made if one.condition == each.condition] for each in left}
    seconds = sum(statistics.median(by_condition[visit.condition] or every or [0.0]) for visit in left)
    return f"about {seconds / 60:.0f} minutes"


def tor_version() -> str:
    """Of the tor that is installed."""
    told = subprocess.run(["tor", "--version"], capture_output=True, text=True, check=True).stdout
    return told.splitlines()[0].rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20, metavar="N", help="pages (default: 20)")
    parser.add_argument("--visits", type=int, default=20, metavar="N", help="of each page, each way (default: 20)")
    parser.add_argument("--conditions", nargs="+", metavar="NAME", help="(default: all) direct, browser, padded-256k,"
                        " grid-256k, grid-1m, cover")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"(default: {OUT})")
    parser.add_argument("--release", type=float, default=2.0, metavar="S", help="the grid's step (default: 2)")
    parser.add_argument("--cover-rate", type=float, default=398_400.0, metavar="N", help="bytes a second, each way")
    parser.add_argument("--cover-seconds", type=float, default=6.0, metavar="S", help="(default: 6)")
    parser.add_argument("--delay-ms", type=float, default=0.0, metavar="MS", help="of a link, each way (default: 0)")
    parser.add_argument("--only", choices=["visits", "attacks"], help="one half of it")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="(default: fingerprint.png in --out)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        found = run(options)
    except BentoError as why:
        sys.exit(f"{why.message} ({why.hint})" if why.hint else why.message)
    except KeyboardInterrupt:
        sys.exit(130)
    if found is None:
        return
    findings.draw(found, options.picture or options.out / "fingerprint.png")
    print(json.dumps(findings.as_object(found)) if options.json else findings.as_text(found))
    sys.exit(1 if found.void_because() or found.leaks() else 0)


def run(options: argparse.Namespace) -> findings.Findings | None:
    """Visits, then attacks."""
    pace = Pace.of(options.cover_rate, options.cover_seconds)
    conditions = make_conditions(options.release, pace)
    options.conditions = options.conditions or list(conditions)
    if unknown := set(options.conditions) - set(conditions):
        hint = f"there are {', '.join(conditions)}"
        raise BentoError(f"there is no condition {', '.join(sorted(unknown))}", hint=hint)
    if options.only != "attacks":
        lab.enter_namespace()
    begun_with = {
        "sites": options.sites,
        "seed": SEED,
        "release_s": options.release,
        "cover": [pace.slot_bytes, pace.slots],
        "delay_ms": options.delay_ms,
        "tor": tor_version(),
    }
    journal = open_journal(options.out, begun_with)
    if options.only != "attacks":
        capture(options, journal, conditions)
    if options.only == "visits":
        return None
    bounded = frozenset(name for name, condition in conditions.items() if condition.bounded)
    return findings.find(journal, options.conditions, options.sites, bounded, lab.say)


if __name__ == "__main__":
    main()
