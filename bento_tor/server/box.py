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
from contextlib import suppress
from pathlib import Path

from bento_tor.egress.link import BoxLine
from bento_tor.errors import ConfigError
from bento_tor.policy import document
from bento_tor.policy.signature import Signed
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server import operator
from bento_tor.server.desk import Desk
from bento_tor.server.sessions import Sessions
from bento_tor.server.store import Store
from bento_tor.server.visit import Visit

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1000
_BACKLOG = 128
_HOUR_S = 3600.0


class Box:
    """Serves clients on a listening socket until it is told to stop, or the keeper has gone."""

    def __init__(
        self,
        listener: socket.socket,
        keeper: socket.socket,
        operator: socket.socket,
        maybe_line: socket.socket | None,
        *,
        database: Path,
        address: str,
        signed: Signed,
    ) -> None:
        self._listener = listener
        self._operator = operator
        self._maybe_line = maybe_line
        self._keeper = keeper
        self._database = database
        self._address = address
        self._signed = signed
        self._visits: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Block until the end. Every acknowledged function, and every outcome, is on disk when this returns."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8 * _MAX_CONNECTIONS)), hard))
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        policy = document.decode(self._signed.document)
        store = Store(self._database, self._address, max_functions=policy.functions, function_days=policy.function_days)
        if lost := store.sweep():
            log.warning("%d sessions were lost when the box last stopped", lost)
        link = KeeperLink(self._keeper)
        # An ended session waits in memory for its reader.
        way_out = BoxLine(self._maybe_line) if self._maybe_line is not None else None
        sessions = Sessions(
            link, running_max=policy.sessions, kept_s=policy.output_hours * _HOUR_S, maybe_way_out=way_out
        )
        desk = Desk(self._signed, store, sessions)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_server(
            lambda reader, writer: self._receive(desk, reader, writer), sock=self._listener, backlog=_BACKLOG
        )
        orders = await operator.serve(self._operator, {"takedown": lambda words: _take_down(desk, words)})
        link.open()
        if way_out is not None:
            way_out.open()
        sweeping = asyncio.create_task(_sweep_hourly(desk))
        async with server, orders:
            told, gone = asyncio.create_task(stop.wait()), asyncio.create_task(link.gone())
            await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
            server.close()
            orders.close()
            await desk.stop()
            for task in (told, gone, sweeping, *self._visits):
                task.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(told, gone, sweeping, *self._visits, return_exceptions=True), 5.0)
        link.close()
        if way_out is not None:
            way_out.close()
        # A second SIGTERM (systemd and timeout signal the whole group) must not meet a loop that is closing.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def _receive(self, desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._visits) >= _MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.current_task()
        if task is not None:
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)
        try:
            await Visit(desk, reader, writer).run()
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


async def _take_down(desk: Desk, words: list[str]) -> operator.Answer:
    if len(words) != 1:
        raise ConfigError("takedown wants the public id of one function")
    if not await desk.take_down(words[0]):
        raise ConfigError(f"this box has no function with the public id {words[0][:64]!r}")
    log.info("the operator has taken down a function")
    return {"erased": words[0]}
