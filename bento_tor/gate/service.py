"""One onion service of a function's: its socket, at which tor knocks, and the visitors who wait to be fetched.

No route leads into a sandbox. So a connection from inside waits here, with the service's ticket; a visitor is tied to
the next one that waits.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

# Visitors who have come and not been fetched; more of them wait at the socket, and tor's own patience ends that.
_WAITING = 16
_BACKLOG = 64


class Service:
    """Listens at `path`, a socket that tor can reach. Belongs to the running event loop."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self.address = ""
        self.ticket = ""
        self.uploaded = asyncio.Event()
        self._closed = asyncio.Event()
        self._visitors: asyncio.Queue[socket.socket] = asyncio.Queue(_WAITING)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # of a gate that was killed
            self._listener.bind(str(path))
            # As the box's own socket: who reaches the onion service may come in, and tor is a user of its own.
            path.chmod(0o666)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def fetch(self, conn: socket.socket) -> socket.socket | None:
        """Wait for a visitor; None where the one who waits, `conn`, has gone before, or the service has."""
        waiting = asyncio.create_task(self._visitors.get())
        # It says nothing before it was told that there is a visitor: what comes is its end.
        leaving = asyncio.create_task(asyncio.get_running_loop().sock_recv(conn, 1))
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait([waiting, leaving, closing], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return None
            visitor = waiting.result()
            if not leaving.done() and not closing.done():
                return visitor
            try:
                self._visitors.put_nowait(visitor)
            except asyncio.QueueFull:
                visitor.close()
            return None
        finally:
            for task in (waiting, leaving, closing):
                task.cancel()
            await asyncio.gather(waiting, leaving, closing, return_exceptions=True)

    async def close(self) -> None:
        """Nobody is let in any more."""
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        with suppress(OSError):
            self.path.unlink()
        self._closed.set()
        while not self._visitors.empty():
            self._visitors.get_nowait().close()

    async def _accept(self) -> None:
        while True:
            try:
                visitor, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            visitor.setblocking(False)
            try:
                await self._visitors.put(visitor)
            except asyncio.CancelledError:
                visitor.close()
                raise
