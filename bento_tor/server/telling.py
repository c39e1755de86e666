"""What a box tells of itself: to the operator by the verb `status`, and in its metrics."""

from __future__ import annotations

import time

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server.complaints import Complaint, Complaints
from bento_tor.server.desk import Desk
from bento_tor.server.doorway import Doorway
from bento_tor.server.lookout import Sight
from bento_tor.server.metrics import Live
from bento_tor.server.operator import Answer
from bento_tor.server.spool import Spool
from bento_tor.server.status import BoxStatus, Facts, Pool, Use
from bento_tor.server.verbs import Verbs


class Telling:
    """Knows where each number is. Belongs to the event loop's thread."""

    def __init__(
        self,
        facts: Facts,
        desk: Desk,
        verbs: Verbs,
        doorway: Doorway,
        spool: Spool,
        link: KeeperLink,
        sight: Sight,
        complaints: Complaints,
    ) -> None:
        self._facts = facts
        self._desk = desk
        self._verbs = verbs
        self._doorway = doorway
        self._spool = spool
        self._link = link
        self._sight = sight
        self._complaints = complaints
        self._began = int(time.time())

    async def status(self, words: list[str]) -> Answer:
        """How the box is, now. Changes nothing."""
        if words:
            raise ConfigError("status wants no more words")
        functions = await self._desk.count_functions()
        told: dict[str, object] = msgspec.to_builtins(self._status(functions))
        return told

    def live(self) -> Live:
        """The part that metrics need."""
        running, waiting = self._desk.left
        return Live(self._desk.paused, running, waiting, self._doorway.inside_now)

    def _status(self, functions: int) -> BoxStatus:
        policy, seen, totals = self._desk.policy, self._sight.last, self._desk.audit.totals
        live = self.live()
        return BoxStatus(
            self._facts,
            self._began,
            live.paused,
            self._verbs.draining,
            Use(live.running, policy.sessions),
            live.waiting,
            Use(functions, policy.functions),
            Use(live.connections, self._doorway.most),
            Use(self._spool.used_bytes, self._spool.most_bytes),
            Pool(seen.ready, seen.pool, self._link.pool_hits, self._link.cold_starts),
            policy.limits,
            policy.egress,
            totals.exact,
            {" ".join(name): count for name, count in sorted(totals.counts().items()) if count},
            _newest((*seen.complaints, *self._complaints.last)),
        )


def _newest(complaints: tuple[Complaint, ...]) -> tuple[Complaint, ...]:
    """Of keeper and box, in the order of their times."""
    return tuple(sorted(complaints, key=lambda complaint: complaint.at))[-5:]
