"""A session's door in a process beside the box: a listening socket, and a task for each connection through it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

# After an accept that failed: no descriptors left, or a connection that is gone again.
_PAUSE_S = 0.1


class Door:
    """Owns the listening socket and all tasks that begin behind it. `serve` owns the connection that it is given.

    No more than `places` connections are served at once; more of them wait to be accepted. A task that fails ends its
    own connection only: that is no news."""

    def __init__(
        self, listener: socket.socket, places: int, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]
    ) -> None:
        self._listener = listener
        self._places = asyncio.Semaphore(places)
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to accept, in the running event loop."""
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """End every task; nothing is left."""
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """One task more, which takes no place."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    @property
    def busy(self) -> int:
        """How many tasks there are."""
        return len(self._tasks)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                conn, _ = await loop.sock_accept(self._listener)
            except OSError:
                # No reason to be deaf for ever.
                self._places.release()
                await asyncio.sleep(_PAUSE_S)
                continue
            conn.setblocking(False)
            self.begin(self._serve(conn)).add_done_callback(lambda task: self._places.release())

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, else asyncio tells of it


async def exactly(conn: socket.socket, count: int) -> bytes:
    """So many bytes. Raises OSError where fewer come."""
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(conn, count - len(data))
        if not piece:
            raise ConnectionAbortedError(f"hung up after {len(data)} of {count} bytes")
        data += piece
    return data
