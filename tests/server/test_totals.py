"""What metrics may show: full hours, rounded; nothing of one session, unless it was asked for."""

from __future__ import annotations

import pytest

from bento_tor.server.totals import GRAIN, HOUR_S, MIB, START_BOUNDS, Totals

NOW = 1_700_000_000.0


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now

    def pass_hour(self) -> None:
        self.now += HOUR_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_exact_ones_are_as_they_are_at_once(clock: Clock) -> None:
    totals = Totals(exact=True, clock=clock)
    totals.add("end", "returned")
    totals.waited(0.004)
    totals.carried("exit", sent=7, received=9)
    assert totals.counts()["end", "returned"] == 1
    assert (totals.waits().counts[0], totals.waits().seconds) == (1, 0.004)
    assert (totals.traffic()["exit"].sent, totals.traffic()["exit"].received) == (7, 9)
    clock.pass_hour()
    totals.add("end", "returned")
    assert totals.counts()["end", "returned"] == 2, "they only grow"


def test_nothing_moves_before_the_hour_is_over_and_then_by_eights(clock: Clock) -> None:
    totals = Totals(clock=clock)
    for _ in range(13):
        totals.add("end", "returned")
        totals.waited(0.004)
        assert not any(totals.counts().values()) and not any(totals.waits().counts)
    clock.pass_hour()
    assert totals.counts()["end", "returned"] == 16
    assert (totals.waits().counts[0], totals.waits().seconds) == (16, 0.064)
    clock.pass_hour()
    assert totals.counts()["end", "returned"] == 16, "an empty hour adds nothing"


@pytest.mark.parametrize("count", range(1, GRAIN // 2))
def test_one_session_is_not_to_be_seen(clock: Clock, count: int) -> None:
    totals, idle = Totals(clock=clock), Totals(clock=clock)
    for _ in range(count):
        totals.add("end", "returned")
        totals.waited(77.7)
        totals.carried("tor", sent=50 * MIB, received=3)
    clock.pass_hour()
    for shown in (totals, idle):
        assert not any(shown.counts().values())
        assert not any(shown.waits().counts) and shown.waits().seconds == 0
        assert not shown.traffic()


def test_bytes_wait_until_enough_sessions_have_sent_them(clock: Clock) -> None:
    totals = Totals(clock=clock)
    for hour in range(GRAIN // 2):
        assert not totals.traffic(), hour
        totals.carried("exit", sent=10 * MIB + 7, received=MIB // 2)
        clock.pass_hour()
    traffic = totals.traffic()["exit"]
    assert (traffic.sessions, traffic.sent, traffic.received) == (GRAIN, 40 * MIB, 2 * MIB)


def test_each_start_is_in_one_bucket(clock: Clock) -> None:
    totals = Totals(exact=True, clock=clock)
    for seconds in (*START_BOUNDS, 1000.0):
        totals.waited(seconds)
    assert totals.waits().counts == [1] * (len(START_BOUNDS) + 1)
