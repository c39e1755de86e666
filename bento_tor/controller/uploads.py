"""What becomes of a service's descriptors on their way to the directories. Pure but for the events it waits for.

One directory's word is not enough. A service has two descriptors at any time, for this time period and for a
neighbouring one (rend-spec-v3, 2.2.1), and the word may be of the other one; or a client asks another directory first,
and its tor says "not found" at once. (tor 0.4.9.11: 9 of 100 connections right after the first word.)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bento_tor.controller.events import HsDescEvent

if TYPE_CHECKING:
    from bento_tor.controller.tor import Events

_DESCRIPTORS = 2
# How long after the first directory's word the others' are waited for: one that does not answer must not hold all.
_SETTLE_S = 10.0
MOST_AT_ONCE = 256
# control-spec, 4.1.25: ACTION ADDRESS AUTH DIRECTORY DESCRIPTOR-ID
_DESCRIPTOR_WORD = 4


@dataclass
class Uploads:
    """The uploads of one service, as tor tells of them."""

    descriptors: set[str] = field(default_factory=set)
    waiting: Counter[str] = field(default_factory=Counter)
    confirmed: int = 0
    refused: int = 0
    settled_at: float = math.inf
    reason: str = ""

    def take(self, event: HsDescEvent, now: float) -> None:
        """One event. `now`: seconds, as `time.monotonic` gives them."""
        self.reason = event.reason or self.reason
        if event.action == "UPLOAD":
            self.descriptors.add(event.word(_DESCRIPTOR_WORD))
            self.waiting[event.directory] += 1
        elif event.action == "UPLOADED" or event.reason == "UPLOAD_REJECTED":
            self.waiting -= Counter([event.directory])
        self.refused += event.reason == "UPLOAD_REJECTED"
        if event.action == "UPLOADED":
            self.confirmed += 1
            self.settle(now)

    def settle(self, now: float) -> None:
        """A directory has a descriptor: the others are not waited for without end."""
        self.settled_at = min(self.settled_at, now + _SETTLE_S)

    @property
    def settled(self) -> bool:
        """Whether every directory has answered, for every descriptor."""
        return self.confirmed > 0 and len(self.descriptors) >= _DESCRIPTORS and not self.waiting

    def is_over(self, now: float) -> bool:
        """Whether nothing more is waited for: they settled, or it has been long enough since the first word."""
        return self.settled or now >= self.settled_at


class EveryUpload:
    """The uploads of all services of a tor. Bounded: what is fetched through it, at addresses that anybody may make up,
    is not kept, and of more services than MOST_AT_ONCE the oldest is forgotten."""

    def __init__(self) -> None:
        self._by_address: dict[str, Uploads] = {}

    def take(self, event: HsDescEvent, now: float) -> None:
        """One event."""
        known = self._by_address
        if event.action in ("UPLOAD", "UPLOADED"):
            known.setdefault(event.address, Uploads())
        if event.address in known:
            known[event.address].take(event, now)
        while len(known) > MOST_AT_ONCE:
            del known[next(iter(known))]

    def over(self, now: float) -> list[str]:
        """The addresses, without `.onion`, whose uploads are over by now; each is told once."""
        found = [address for address, uploads in self._by_address.items() if uploads.is_over(now)]
        for address in found:
            del self._by_address[address]
        return found


def watch(events: Events, name: str, uploads: Uploads, deadline: float, done: Callable[[HsDescEvent], bool]) -> bool:
    """Whether, until the deadline, the uploads settled, or an event of the service was what `done` waits for.

    `name`: the address without `.onion`. Raises TorError when the control connection is over."""
    while (left_s := min(deadline, uploads.settled_at) - time.monotonic()) > 0:
        event = events.maybe_next(left_s)
        if not isinstance(event, HsDescEvent) or event.address != name:
            continue
        uploads.take(event, time.monotonic())
        if done(event) or uploads.settled:
            return True
    return time.monotonic() >= uploads.settled_at
