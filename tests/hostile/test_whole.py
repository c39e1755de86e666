"""The last of this folder: every number of the table was played in this run, and noted."""

from __future__ import annotations

import os

import pytest

# Judged only where the cases themselves are played: `make test-fast` leaves both out.
pytestmark = pytest.mark.sandbox

# They need a broker's own user and network namespaces joined by a cable: root.
ROOTS_ONLY = set(range(43, 53))


def test_every_case_was_played(played):
    """Of what was noted, not of what is listed: run the whole folder."""
    due = set(range(1, 74)) - (ROOTS_ONLY if os.geteuid() != 0 else set())
    assert due - {line.number for line in played} == set(), "not played (is this the whole of tests/hostile?)"


def test_an_ordinary_users_box_was_played(played):
    assert {line.number for line in played if line.how == "rootless"} == {*range(1, 43), 59}
