"""The box's own process: sockets, protocol, store, sessions. It runs as its own user and holds no control connection.

What it cannot do itself (start and kill sandboxes) it asks of the keeper, by fixed-size requests. When the keeper has
gone, the box goes too.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from bento_tor.egress.grants import FromBroker, Noted
from bento_tor.egress.link import BoxLine
from bento_tor.gate.link import GateLine
from bento_tor.policy import document
from bento_tor.policy.signature import Signed
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server import operator
from bento_tor.server.audit import Audit, Kind
from bento_tor.server.desk import Desk
from bento_tor.server.doorway import Doorway
from bento_tor.server.lookout import Seeing, Sight
from bento_tor.server.metrics import CONTENT_TYPE, Metrics
from bento_tor.server.scrape import Scrape
from bento_tor.server.sessions import Sessions
from bento_tor.server.spool import Spool
from bento_tor.server.status import Facts
from bento_tor.server.store import Store
from bento_tor.server.telling import Telling
from bento_tor.server.verbs import Verbs
from bento_tor.server.visit import Visit

log = logging.getLogger(__name__)

# Descriptors beside those of clients: a session has two or three.
_MORE_FILES = 4096
# tor does not wait where as many as this have come and not been let in.
_BACKLOG = 1024
_HOUR_S = 3600.0
_RETRY_S = 60.0


class Box:
    """Serves clients on its listening sockets until it is told to stop, or the keeper has gone."""

    def __init__(
        self,
        listeners: list[socket.socket],
        keeper: socket.socket,
        operator: socket.socket,
        maybe_line: socket.socket | None,
        maybe_gate: socket.socket | None,
        maybe_courier: socket.socket | None,
        *,
        database: Path,
        facts: Facts,
        seeing: Seeing,
        signed: Signed,
        doorway: Doorway,
        spool_bytes: int,
        audit: bool = False,
    ) -> None:
        self._listeners = listeners
        self._operator = operator
        self._maybe_line = maybe_line
        self._maybe_gate = maybe_gate
        self._maybe_courier = maybe_courier
        self._keeper = keeper
        self._database = database
        self._facts = facts
        self._seeing = seeing
        self._signed = signed
        self._doorway = doorway
        self._spool_bytes = spool_bytes
        self._audit = Audit(enabled=audit)
        self._visits: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Block until the end. Every acknowledged function, and every outcome, is on disk when this returns."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self._doorway.most + _MORE_FILES
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        policy = document.decode(self._signed.document)
        store = Store(
            self._database, self._facts.address, max_functions=policy.functions, function_days=policy.function_days
        )
        if lost := store.sweep():
            log.warning("%d sessions were lost when the box last stopped", lost)
        link = KeeperLink(self._keeper)
        # An ended session waits in memory for its reader.
        way_out = BoxLine(self._maybe_line, self._hear_broker) if self._maybe_line is not None else None
        gate = GateLine(self._maybe_gate) if self._maybe_gate is not None else None
        courier = BoxLine(self._maybe_courier) if self._maybe_courier is not None else None
        spool = Spool(self._database.parent, self._spool_bytes)
        sessions = Sessions(
            link,
            running_max=policy.sessions,
            kept_s=policy.output_hours * _HOUR_S,
            maybe_way_out=way_out,
            maybe_gate=gate,
            maybe_courier=courier,
            spool=spool,
            maybe_audit=self._audit,
        )
        desk = Desk(self._signed, store, sessions, self._audit)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._receive(desk, reader, writer)

        servers = [await asyncio.start_server(receive, sock=sock, backlog=_BACKLOG) for sock in self._listeners]
        verbs = Verbs(desk, self._audit, link, stop.set)
        sight = Sight(self._seeing.box)
        telling = Telling(
            self._facts, desk, verbs, self._doorway, spool, link, sight, complaints=self._seeing.complaints
        )
        orders = operator.Orders({**verbs.table, "status": telling.status})
        await orders.open(self._operator)
        sight.open()
        metrics = Metrics(self._audit.totals, lambda: sight.last, telling.live)
        scrape = Scrape(metrics.text, CONTENT_TYPE)
        if self._seeing.maybe_metrics is not None:
            await scrape.open(self._seeing.maybe_metrics)
        link.open()
        if way_out is not None:
            way_out.open()
        if gate is not None:
            gate.open()
        if courier is not None:
            courier.open()
        sweeping = [asyncio.create_task(work(desk)) for work in (_sweep_hourly, _sweep_ended)]
        async with AsyncExitStack() as doors:
            for server in servers:
                await doors.enter_async_context(server)
            told, gone = asyncio.create_task(stop.wait()), asyncio.create_task(link.gone())
            await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
            for server in servers:
                server.close()
            verbs.close()
            scrape.close()
            await orders.close()
            for sweep in sweeping:
                sweep.cancel()  # before there is no disk any more
            await desk.stop()
            left: list[asyncio.Task[Any]] = [told, gone, *sweeping, *self._visits]
            for task in left:
                task.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 5.0)
        link.close()
        sight.close()
        spool.close()
        if way_out is not None:
            way_out.close()
        if gate is not None:
            gate.close()
        if courier is not None:
            courier.close()
        # A second SIGTERM (systemd and timeout signal the whole group) must not meet a loop that is closing.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _hear_broker(self, message: FromBroker) -> None:
        if isinstance(message, Noted):
            self._audit.note(Kind.EGRESS, message.event)
        else:
            self._audit.totals.carried(message.egress, sent=message.bytes_out, received=message.bytes_in)

    async def _receive(self, desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)
        try:
            guest = await self._doorway.maybe_admit(reader, writer)
            if guest is None:
                self._audit.note(Kind.LIMIT, "connections")
            else:
                visit = Visit(desk, reader, writer, guest)
                with self._doorway.inside(guest, visit):
                    await visit.run()
        except Exception:
            # One client's trouble is never another's: say it in the log, and go on.
            log.exception("a connection's machinery broke")
            writer.close()


async def _sweep_hourly(desk: Desk) -> None:
    while True:
        await asyncio.sleep(_HOUR_S)
        try:
            await desk.sweep()
        except Exception:
            # A full disk, say: it may be better in an hour.
            log.exception("the sweep of what is old failed")


async def _sweep_ended(desk: Desk) -> None:
    while True:
        try:
            await desk.sweep_ended()
        except Exception:
            log.exception("functions whose time is over cannot be erased")
            await asyncio.sleep(_RETRY_S)
