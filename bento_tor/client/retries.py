"""How often a client comes back to a box that it lost, and how long it waits. No sockets.

The bound is a defence: a box that hangs up on purpose, again and again, would have its user's tor build one circuit
after another, until one of them passes a relay of the box's friends (guard discovery).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Retries:
    """At most `most` reconnections to one box in `within_s` seconds; waits begin at `first_wait_s`, and double."""

    most: int = 3
    within_s: float = 600.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0

    def wait_s(self, attempt: int) -> float:
        """How long to wait before attempt 1, 2, ...: at random between half of it and all, so that the clients of a
        box that restarts do not all come at once."""
        whole = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(attempt - 1, 16))
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


@dataclass(frozen=True)
class Reconnecting:
    """The connection broke, and will be tried again in `wait_s` seconds."""

    attempt: int
    why: str
    wait_s: float


class Ledger(Protocol):
    """Where the times (seconds since 1970) of the reconnections to one box are kept, for all processes of a user."""

    def changing(self) -> AbstractContextManager[list[float]]:
        """The times, to be changed in the block; nobody else changes them meanwhile."""


class MemoryLedger:
    """For this process alone."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._lock = threading.Lock()

    @contextmanager
    def changing(self) -> Iterator[list[float]]:
        """See `Ledger`."""
        with self._lock:
            yield self._times


class Budget:
    """The reconnections that are still allowed."""

    def __init__(self, retries: Retries, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._retries = retries
        self._ledger = ledger
        self._clock = clock

    def take(self) -> bool:
        """Count one reconnection. False: there were too many lately, and nothing is counted."""
        now = self._clock()
        with self._ledger.changing() as times:
            # A clock that was set back leaves times in the future: they count, or setting it would be a way round.
            times[:] = [when for when in times if now - when < self._retries.within_s]
            if len(times) >= self._retries.most:
                return False
            times.append(now)
            return True

    def give_back(self) -> None:
        """The last one was not one: the box was never asked."""
        with self._ledger.changing() as times:
            if times:
                times.pop()
