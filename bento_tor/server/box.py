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

from bento_tor.policy.document import Policy
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server.desk import Desk
from bento_tor.server.sessions import Sessions
from bento_tor.server.store import Store
from bento_tor.server.visit import Visit

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1000
_BACKLOG = 128
# How long an ended session waits in memory for a reader that never came.
_ENDED_KEPT_S = 600.0


class Box:
    """Serves clients on a listening socket until it is told to stop, or the keeper has gone."""

    def __init__(self, listener: socket.socket, keeper: socket.socket, *, database: Path, address: str, policy: Policy):
        self._listener = listener
        self._keeper = keeper
        self._database = database
        self._address = address
        self._policy = policy
        self._visits: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Block until the end. Every acknowledged function, and every outcome, is on disk when this returns."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8 * _MAX_CONNECTIONS)), hard))
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        store = Store(self._database, self._address, max_functions=self._policy.functions)
        if lost := store.sweep():
            log.warning("%d sessions were lost when the box last stopped", lost)
        link = KeeperLink(self._keeper)
        sessions = Sessions(link, running_max=self._policy.sessions, kept_s=_ENDED_KEPT_S)
        desk = Desk(self._policy, store, sessions)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_server(
            lambda reader, writer: self._receive(desk, reader, writer), sock=self._listener, backlog=_BACKLOG
        )
        link.open()
        async with server:
            told, gone = asyncio.create_task(stop.wait()), asyncio.create_task(link.gone())
            await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
            server.close()
            await desk.stop()
            for task in (told, gone, *self._visits):
                task.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(told, gone, *self._visits, return_exceptions=True), 5.0)
        link.close()
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
