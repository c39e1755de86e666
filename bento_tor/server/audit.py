"""What a box remembers of what happened at it: rounded counts by the hour, and single events where the operator wants.

Never a token, an address, a payload, or a word of a client's or a function's own: every word is from a list of ours.
The times of single sessions are what whoever wants to correlate a box with its users needs most (he has the times of
their circuits from elsewhere), so they are kept only with `audit = true`, in memory, and never for long. Pure: time
comes in as an argument, who prints it is somebody else.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import get_args

import msgspec

from bento_tor.egress import grants
from bento_tor.policy import outcome
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol.messages import Code
from bento_tor.server.totals import HOUR_S, Totals, rough

CAPACITY = 1000
HOURS_KEPT = 24
OTHER = "other"


class Kind(StrEnum):
    """What happened.

    START    a session has begun: `pool` or `cold`, by whether a sandbox was ready for it
    END      a session has ended: the word of its outcome, without the number that a function chooses (`exited`)
    REFUSAL  a client was told no: the code of the Refused
    LIMIT    something was used up: `memory`, `time`, `cpu`, `output` of a session, `connections` of the box
    EGRESS   the broker stopped something of a session: `refused`, `connections`, `names`, `bytes`
    """

    START = "start"
    END = "end"
    REFUSAL = "refusal"
    LIMIT = "limit"
    EGRESS = "egress"


_CRASHES = frozenset(Outcome.crashed(number).word for number in range(1, signal.SIGRTMAX + 1))
_LIMITS = {
    outcome.Kind.KILLED_MEMORY: "memory",
    outcome.Kind.KILLED_TIME: "time",
    outcome.Kind.KILLED_CPU: "cpu",
    outcome.Kind.KILLED_OUTPUT: "output",
}
# What is not listed becomes `other`: no word of a client's or a function's can get in by a fault elsewhere.
WORDS: Mapping[Kind, frozenset[str]] = {
    Kind.START: frozenset({"pool", "cold"}),
    Kind.END: frozenset(kind.value for kind in outcome.Kind) | _CRASHES,
    Kind.REFUSAL: frozenset(code.value for code in Code),
    Kind.LIMIT: frozenset(_LIMITS.values()) | {"connections"},
    Kind.EGRESS: frozenset(get_args(grants.Event)),
}


class Event(msgspec.Struct, frozen=True):
    """One thing that happened. `number` counts from 1 since the box started; `at` is a second since the epoch."""

    number: int
    at: int
    kind: Kind
    word: str


class Hour(msgspec.Struct, frozen=True):
    """A full hour's counts, rounded, by `kind word`. `begins`: seconds since the epoch."""

    begins: int
    counts: Mapping[str, int]


class Audit:
    """Takes notes. `enabled`: keep single events too, the newest `capacity` of them; `clock`: seconds since the epoch.

    Belongs to one thread."""

    def __init__(
        self, *, enabled: bool = False, capacity: int = CAPACITY, clock: Callable[[], float] = time.time
    ) -> None:
        self.enabled = enabled
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=capacity)
        self._noted = 0
        self._hour = self._this_hour()
        self._counts: Counter[str] = Counter()
        self._hours: deque[Hour] = deque(maxlen=HOURS_KEPT)
        self.totals = Totals(exact=enabled, clock=clock)

    def note(self, kind: Kind, word: str) -> None:
        """It has just happened. A word that is not of WORDS is noted as `other`."""
        if word not in WORDS[kind]:
            word = OTHER
        self._turn()
        self._counts[f"{kind} {word}"] += 1
        self.totals.add(kind, word)
        if self.enabled:
            self._noted += 1
            self._events.append(Event(self._noted, int(self._clock()), kind, word))

    def started(self, *, pooled: bool, maybe_took_s: float | None = None) -> None:
        """A session has begun, so many seconds after it was asked for."""
        self.note(Kind.START, "pool" if pooled else "cold")
        if maybe_took_s is not None:
            self.totals.waited(maybe_took_s)

    def ended(self, ended: Outcome) -> None:
        """A session has ended: one event, and one more for the limit that it met, if it did."""
        # The number of `exited:N` is a byte of the function's choice.
        self.note(Kind.END, ended.word if ended.kind is outcome.Kind.CRASHED else ended.kind)
        if ended.kind in _LIMITS:
            self.note(Kind.LIMIT, _LIMITS[ended.kind])

    def events(self, since: int = 0) -> tuple[Event, ...]:
        """Those with a number above `since` that are still kept, oldest first."""
        return tuple(event for event in self._events if event.number > since)

    def counters(self) -> tuple[Hour, ...]:
        """The last full hours in which enough happened to be told, oldest first.

        Not the hour that runs: who asks again and again would see the moment at which a count changes. An hour whose
        counts all round to nothing is left out, or its being there would tell of one session."""
        self._turn()
        oldest = (self._hour - HOURS_KEPT) * HOUR_S
        return tuple(hour for hour in self._hours if hour.begins >= oldest)

    def _turn(self) -> None:
        """Where the hour is over, keep of it what is shown, and forget the rest."""
        hour = self._this_hour()
        if hour == self._hour:
            return
        shown = {name: rounded for name, count in sorted(self._counts.items()) if (rounded := rough(count))}
        if shown:
            self._hours.append(Hour(self._hour * HOUR_S, shown))
        self._counts.clear()
        self._hour = hour

    def _this_hour(self) -> int:
        return int(self._clock() // HOUR_S)
