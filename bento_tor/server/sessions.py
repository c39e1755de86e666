"""All sessions of a box: how many run, how an ended one waits for its reader, and what all of them may keep.

What one session does is `session`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from bento_tor.egress.grants import Grant
from bento_tor.egress.link import BoxLine
from bento_tor.gate.link import GateLine
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind, Outcome
from bento_tor.sandbox.link import KeeperLink, LinkedCell
from bento_tor.server.audit import Audit
from bento_tor.server.gating import Gating
from bento_tor.server.output import Tally
from bento_tor.server.session import Call, Session
from bento_tor.server.spool import Spool

log = logging.getLogger(__name__)

# What ended sessions may keep in memory, all together, until their readers come.
_ENDED_MAX_BYTES = 64 * 1024 * 1024

NoteEnd = Callable[[Session, Outcome], Awaitable[None]]


class Sessions:
    """All sessions of a box: how many may run, and how long an ended one waits for its reader."""

    def __init__(
        self,
        link: KeeperLink,
        *,
        running_max: int,
        kept_s: float,
        spool: Spool,
        ended_bytes: int = _ENDED_MAX_BYTES,
        maybe_way_out: BoxLine | None = None,
        maybe_gate: GateLine | None = None,
        maybe_courier: BoxLine | None = None,
        maybe_audit: Audit | None = None,
    ) -> None:
        self._spool = spool
        self._tally = Tally()  # output in memory
        self._maybe_way_out = maybe_way_out
        self._maybe_gate = maybe_gate
        self._maybe_courier = maybe_courier
        self._audit = maybe_audit or Audit()
        self._link = link
        self._running_max = running_max
        self._kept_s = kept_s
        self._ended_bytes = ended_bytes
        self._sessions: dict[bytes, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many run now."""
        return sum(session.maybe_outcome is None for session in self._sessions.values())

    @property
    def owed(self) -> int:
        """How many have ended, and their readers have not had everything yet that only memory holds."""
        return sum(session.is_owed for session in self._sessions.values())

    @property
    def full(self) -> bool:
        """No more can start."""
        return self.running >= self._running_max

    def maybe_get(self, session_hash: bytes) -> Session | None:
        """The session known by this hash, while it runs or waits for its reader."""
        return self._sessions.get(session_hash)

    def of_function(self, function_hash: bytes) -> list[Session]:
        """Every session of one function."""
        return [session for session in self._sessions.values() if session.function_hash == function_hash]

    async def start(self, session: Session, call: Call, limits: Limits, note_end: NoteEnd, *, image: int = 0) -> None:
        """Start it in a sandbox of its own, of the policy's image with this place.

        Raises SandboxError where that is not possible."""
        self._sessions[session.session_hash] = session
        session.backlog.keep_on(self._spool.shelf(), self._tally)
        asked_at = time.monotonic()
        try:
            cell = await self._link.start(limits, image=image)
        except BaseException:
            self._sessions.pop(session.session_hash, None)  # unless an erasure did
            # Who has opened it meanwhile, on another connection, must not wait for ever.
            session.finish(Outcome.lost("no sandbox could be had for it"))
            raise
        self._audit.started(pooled=cell.pooled, maybe_took_s=time.monotonic() - asked_at)
        if self._maybe_way_out is not None:
            # Also for `none`, which closes the door. Where the broker does not take it, nothing gets out.
            self._maybe_way_out.grant(Grant(cell.number, call.egress, call.hosts))
        if self._maybe_gate is not None:
            # Also for none at all, which closes the door.
            self._maybe_gate.allow(cell.number, call.tor, call.hosts)
            session.maybe_gating = Gating(self._maybe_gate, cell.number) if call.tor else None
        if self._maybe_courier is not None:
            # Who was started by a function goes no further: else two functions could keep each other alive for ever.
            goes = call.box and not call.onward
            self._maybe_courier.grant(Grant(cell.number, "tor" if goes else "none", call.hosts))
        task = asyncio.create_task(self._run(session, cell, call, note_end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, session_hash: bytes) -> None:
        """Its output has been read, or its function erased."""
        if (session := self._sessions.pop(session_hash, None)) is not None:
            session.backlog.drop()
            session.ring()  # who was reading is told that nothing more comes

    def _make_room(self) -> None:
        """Forget the oldest of the ended ones where all together keep too much for readers that do not come: half of
        the disk's room is for those that run."""
        ended = [session for session in self._sessions.values() if session.maybe_outcome is not None]
        here = sum(session.cost_bytes for session in ended)
        away = sum(session.output.away_bytes for session in ended)
        for session in ended:
            if here <= self._ended_bytes and away <= self._spool.most_bytes // 2:
                return
            here -= session.cost_bytes
            away -= session.output.away_bytes
            self.forget(session.session_hash)

    async def stop(self, why: Kind = Kind.KILLED_USER) -> int:
        """End everything that runs; used when the box stops. Gives how many did."""
        running = self.running
        for session in list(self._sessions.values()):
            session.end(why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)
        return running

    async def _run(self, session: Session, cell: LinkedCell, call: Call, note_end: NoteEnd) -> None:
        try:
            outcome = await session.run(self._link, cell, call)
        except Exception:
            log.exception("a session's machinery broke")
            self._link.kill(cell.number, Kind.KILLED_OPERATOR)
            outcome = Outcome.lost("the box could not carry on with this session")
        try:
            await note_end(session, outcome)
        except Exception:
            log.exception("a session's outcome could not be noted")
        self._audit.ended(outcome)
        session.finish(outcome)
        self._make_room()
        asyncio.get_running_loop().call_later(self._kept_s, self.forget, session.session_hash)
