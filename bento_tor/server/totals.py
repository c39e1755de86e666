"""Counts that only grow, for metrics. Pure: time comes in as an argument.

Whoever reads metrics reads them again and again, and keeps what he read: a count that grew by one between two looks
is the time of a session, which is what whoever wants to correlate a box with its users needs. So, as in `audit`, what
is shown by default is the sum of full hours, each rounded. Only `exact` shows what is.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HOUR_S = 3600
# Counts are shown as a multiple of this: one session more or less is, nearly always, not to be seen.
GRAIN = 8
MIB = 1 << 20
# Upper bounds, in seconds, of how long a start may take: a ready sandbox is some milliseconds, a cold one some tenths.
START_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

Name = tuple[str, str]


def rough(count: int) -> int:
    """The nearest multiple of GRAIN; half goes up."""
    return (count + GRAIN // 2) // GRAIN * GRAIN


@dataclass
class Traffic:
    """Bytes that sessions of one class of egress have sent and received."""

    sessions: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class Waits:
    """How long starts took: how many up to each of START_BOUNDS and beyond the last, and their seconds together."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(START_BOUNDS) + 1))
    seconds: float = 0.0


class Totals:
    """Since the box began. `exact`: as they are now; `clock`: seconds since the epoch. Belongs to one thread."""

    def __init__(self, *, exact: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.exact = exact
        self._clock = clock
        self._hour = self._this_hour()
        self._now: Counter[Name] = Counter()
        self._shown: Counter[Name] = Counter()
        self._waits, self._shown_waits = Waits(), Waits()
        self._traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self._shown_traffic: defaultdict[str, Traffic] = defaultdict(Traffic)

    def add(self, kind: str, word: str) -> None:
        """One more of that."""
        self._turn()
        self._now[kind, word] += 1

    def waited(self, seconds: float) -> None:
        """A start took so long."""
        self._turn()
        self._waits.counts[bisect_left(START_BOUNDS, seconds)] += 1
        self._waits.seconds += seconds

    def carried(self, egress: str, *, sent: int, received: int) -> None:
        """A session with that class of egress has ended; so many bytes went through it."""
        self._turn()
        traffic = self._traffic[egress]
        traffic.sessions += 1
        traffic.sent += sent
        traffic.received += received

    def counts(self) -> Mapping[Name, int]:
        """By kind and word."""
        self._turn()
        return self._now if self.exact else self._shown

    def waits(self) -> Waits:
        """Of all starts."""
        self._turn()
        return self._waits if self.exact else self._shown_waits

    def traffic(self) -> Mapping[str, Traffic]:
        """By class of egress."""
        self._turn()
        return self._traffic if self.exact else self._shown_traffic

    def _turn(self) -> None:
        """Where the hour is over, show of it what may be shown, and forget the rest."""
        hour = self._this_hour()
        if self.exact or hour == self._hour:
            return
        self._hour = hour
        for name, count in self._now.items():
            self._shown[name] += rough(count)
        self._now.clear()
        self._turn_waits()
        self._turn_traffic()

    def _turn_waits(self) -> None:
        shown, count = [rough(count) for count in self._waits.counts], sum(self._waits.counts)
        self._shown_waits.counts = [a + b for a, b in zip(self._shown_waits.counts, shown, strict=True)]
        # Their mean, of at least half a grain of them: the sum itself would tell that one was there.
        self._shown_waits.seconds += round(self._waits.seconds / count * sum(shown), 3) if count else 0.0
        self._waits = Waits()

    def _turn_traffic(self) -> None:
        """Bytes are kept back until as many sessions have sent them as would be shown: the bytes of one are his."""
        for egress, traffic in list(self._traffic.items()):
            if rough(traffic.sessions):
                shown = self._shown_traffic[egress]
                shown.sessions += rough(traffic.sessions)
                shown.sent += _whole_mib(traffic.sent)
                shown.received += _whole_mib(traffic.received)
                del self._traffic[egress]

    def _this_hour(self) -> int:
        return int(self._clock() // HOUR_S)


def _whole_mib(count: int) -> int:
    return (count + MIB // 2) // MIB * MIB
