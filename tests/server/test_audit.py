"""What a box remembers: nothing of anybody's own, no time of a single session unless it was asked for."""

from __future__ import annotations

import msgspec
import pytest

from bento_tor.policy.outcome import Kind as Ending
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol.messages import Code
from bento_tor.server.audit import CAPACITY, HOURS_KEPT, WORDS, Audit, Event, Kind
from bento_tor.server.totals import GRAIN, HOUR_S, rough

NOW = 1_700_000_000


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_events_are_numbered_and_say_kind_word_and_second(clock: Clock) -> None:
    audit = Audit(enabled=True, clock=clock)
    audit.started(pooled=True)
    clock.now += 2.9
    audit.ended(Outcome.returned())
    audit.note(Kind.REFUSAL, Code.FULL)
    assert audit.events() == (
        Event(1, NOW, Kind.START, "pool"),
        Event(2, NOW + 2, Kind.END, "returned"),
        Event(3, NOW + 2, Kind.REFUSAL, "full"),
    )
    assert [event.number for event in audit.events(since=2)] == [3]
    assert audit.events(since=3) == ()


@pytest.mark.parametrize("ending", list(Ending))
def test_every_end_is_one_event_and_a_limit_one_more(ending: Ending, clock: Clock) -> None:
    audit = Audit(enabled=True, clock=clock)
    audit.ended(Outcome(ending, "Traceback: a function's own words", 7))
    ends = [event.word for event in audit.events() if event.kind is Kind.END]
    assert ends == ["crashed:SIGBUS" if ending is Ending.CRASHED else ending.value]
    limits = [event.word for event in audit.events() if event.kind is Kind.LIMIT]
    named = ending.value.removeprefix("killed:")
    assert limits == ([named] if named in ("memory", "time", "cpu", "output") else [])


def test_no_word_of_a_stranger_gets_in(clock: Clock) -> None:
    audit = Audit(enabled=True, clock=clock)
    for kind in Kind:
        for word in ("example.org", "returned\n", "", "x" * 1000, "exited:255"):
            audit.note(kind, word)
    assert {event.word for event in audit.events()} == {"other"}
    audit.ended(Outcome.exited(200))
    assert audit.events()[-1].word == "exited"
    written = msgspec.json.encode(audit.events()).decode()
    assert "example" not in written and "200" not in written


def test_the_ring_is_bounded_and_keeps_the_newest(clock: Clock) -> None:
    audit = Audit(enabled=True, clock=clock)
    for _ in range(CAPACITY + 5):
        audit.note(Kind.LIMIT, "memory")
    numbers = [event.number for event in audit.events()]
    assert numbers == list(range(6, CAPACITY + 6))


def test_without_the_setting_no_single_event_is_kept(clock: Clock) -> None:
    audit = Audit(clock=clock)
    audit.started(pooled=False)
    assert audit.events() == ()


def test_counts_are_of_full_hours_and_rounded(clock: Clock) -> None:
    audit = Audit(clock=clock)
    for _ in range(13):
        audit.started(pooled=True)
    for _ in range(3):
        audit.started(pooled=False)
    assert audit.counters() == (), "the hour runs: it would tell when a count changes"
    clock.now += HOUR_S
    (hour,) = audit.counters()
    assert hour.begins == NOW // HOUR_S * HOUR_S
    assert hour.counts == {"start pool": 16}, "three are not told from none"


@pytest.mark.parametrize("count", range(100))
def test_a_count_is_rounded_to_the_nearest_multiple(count: int) -> None:
    assert rough(count) % GRAIN == 0 and abs(rough(count) - count) <= GRAIN // 2


def test_an_hour_with_one_session_looks_like_one_without(clock: Clock) -> None:
    busy, quiet = Audit(clock=clock), Audit(clock=clock)
    busy.started(pooled=True)
    clock.now += HOUR_S
    assert busy.counters() == quiet.counters() == ()


def test_old_hours_are_forgotten_also_where_nothing_happens(clock: Clock) -> None:
    audit = Audit(clock=clock)
    for _ in range(HOURS_KEPT + 10):
        for _ in range(GRAIN):
            audit.note(Kind.EGRESS, "refused")
        clock.now += HOUR_S
    assert len(audit.counters()) == HOURS_KEPT
    clock.now += HOURS_KEPT * HOUR_S
    assert audit.counters() == ()


def test_every_kind_has_its_words() -> None:
    assert set(WORDS) == set(Kind)
    assert all(Code(word) for word in WORDS[Kind.REFUSAL])
