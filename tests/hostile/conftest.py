"""The hostile table: what was played is noted, and printed at the end, a line for each case."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Line:
    """A case that was played. `how`: where; `number`: of the table of cases; `outcome`: what came of it."""

    how: str
    number: int
    name: str
    outcome: str


_PLAYED = pytest.StashKey[list[Line]]()


@pytest.fixture
def played(request) -> list[Line]:
    """All lines so far."""
    return request.config.stash.setdefault(_PLAYED, [])


@pytest.fixture
def note(played):
    """Keep a line for the table."""
    return lambda how, number, name, outcome: played.append(Line(how, number, name, outcome))


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(_PLAYED, [])
    if lines:
        numbers = len({line.number for line in lines})
        terminalreporter.section(f"hostile cases: {len(lines)} played, {numbers} of 67 numbers")
    for line in lines:
        # What came of it may be a function's own words: one line, and nothing that drives a terminal.
        outcome = line.outcome.encode("unicode_escape").decode("ascii")
        terminalreporter.write_line(f"{line.how:9} {line.number:02} {line.name:52.52} {outcome:.90}")
