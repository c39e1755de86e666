"""One session's traffic: takes its connections, asks its way for the other end, relays bytes, and counts them.

A connection that is slow, silent or endless costs its own session only: there is one task for each, with one piece of
64 KiB in either direction, and no more of them than the grant allows.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from bento_tor.egress.door import Door
from bento_tor.egress.grants import Carried, Event, Grant
from bento_tor.egress.socks5 import Parser, Reply, Request, Unanswerable, reply
from bento_tor.egress.ways import Denied, Opened, Way
from bento_tor.errors import RemoteProtocolError
from bento_tor.policy.destinations import is_named
from bento_tor.policy.exit_policy import IPAddress

_PIECE_BYTES = 64 * 1024
# From the connection to its request: the forwarder inside sends it at once.
_REQUEST_S = 10.0
_REQUEST_MAX_BYTES = 4096
# Connections beyond the grant that are heard and told so; more of them wait to be accepted.
_HEARD_BEYOND = 8


class Session:
    """What goes through one listening socket, under one grant. `note` is told what the audit may know."""

    def __init__(self, grant: Grant, listener: socket.socket, way: Way, note: Callable[[Event], None]) -> None:
        self._grant = grant
        self._way = way
        self._note = note
        self._bytes_out = self._bytes_in = 0
        self._opened: dict[asyncio.Task[None], Opened] = {}
        self._door = Door(listener, grant.caps.connections + _HEARD_BEYOND, self._serve)

    def start(self) -> None:
        """Begin to accept, in the running event loop."""
        self._door.open()

    async def close(self) -> None:
        """End every connection; nothing of the session is left."""
        self._way.close()
        await self._door.close()

    @property
    def carried(self) -> Carried:
        """What went through it so far."""
        return Carried(self._grant.number, self._grant.egress, self._bytes_out, self._bytes_in)

    def judge_again(self, accepts: Callable[[IPAddress, int], bool]) -> None:
        """Close what goes to where it may not go any more."""
        for task, opened in list(self._opened.items()):
            if opened.address is not None and not accepts(opened.address, opened.port):
                self._note("refused")
                task.cancel()

    @property
    def _spent(self) -> bool:
        caps = self._grant.caps
        return self._bytes_out > caps.bytes_out or self._bytes_in > caps.bytes_in

    async def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError, TimeoutError):
            try:
                request = await _heard(conn)
                opened = await self._open(request)
            except Unanswerable as why:
                await _send(conn, why.answer)
            except RemoteProtocolError:
                return
            except Denied as why:
                if why.event is not None:
                    self._note(why.event)
                await _send(conn, reply(why.reply))
            else:
                with opened.sock:
                    await self._relay(conn, request, opened)

    async def _open(self, request: Request) -> Opened:
        if not is_named(self._grant.hosts, str(request.host)):
            # Quietly, without an event: a browser phones home, whatever its flags say.
            raise Denied(Reply.UNNAMED)
        if self._spent:
            raise Denied(Reply.BYTES)
        if self._door.busy > self._grant.caps.connections:
            raise Denied(Reply.CONNECTIONS, event="connections")
        return await self._way.open(request.host, request.port)

    async def _relay(self, conn: socket.socket, request: Request, opened: Opened) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._opened[task] = opened
        idle = Idle(self._grant.caps.idle_s, task)
        try:
            await _send(conn, reply(Reply.OK))
            if request.early:
                self._count(len(request.early), 0)
                await asyncio.get_running_loop().sock_sendall(opened.sock, request.early)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(conn, opened.sock, idle, out=True))
                group.create_task(self._pump(opened.sock, conn, idle, out=False))
        except* OSError:
            pass  # either end has gone
        finally:
            idle.stop()
            del self._opened[task]

    async def _pump(self, source: socket.socket, sink: socket.socket, idle: Idle, *, out: bool) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _PIECE_BYTES):
            self._count(len(data) if out else 0, 0 if out else len(data))
            await loop.sock_sendall(sink, data)
            idle.touch()
        sink.shutdown(socket.SHUT_WR)

    def _count(self, out: int, into: int) -> None:
        """Raises OSError where the session has had all that it may have; then every connection of it ends."""
        was_spent = self._spent
        self._bytes_out += out
        self._bytes_in += into
        if self._spent:
            if not was_spent:
                self._note("bytes")
                for task in self._opened:
                    task.cancel()
            raise ConnectionAbortedError("the session has sent or received all that it may")


class Idle:
    """Ends a connection over which no byte has gone for so long, whichever end is to blame."""

    def __init__(self, limit_s: float, task: asyncio.Task[None]) -> None:
        self._limit_s = limit_s
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(limit_s, self._look)

    def touch(self) -> None:
        """A byte has gone."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """The connection has ended by itself."""
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._last + self._limit_s - self._loop.time()
        if left_s <= 0:
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(left_s, self._look)


async def _heard(conn: socket.socket) -> Request:
    """The request. Raises RemoteProtocolError, TimeoutError, OSError."""
    parser = Parser()
    async with asyncio.timeout(_REQUEST_S):
        while data := await asyncio.get_running_loop().sock_recv(conn, _REQUEST_MAX_BYTES):
            answer, request = parser.feed(data)
            await _send(conn, answer)
            if request is not None:
                return request
    raise RemoteProtocolError("hung up before the request")


async def _send(conn: socket.socket, data: bytes) -> None:
    """A few bytes; who does not read them is not waited for longer than for a request."""
    async with asyncio.timeout(_REQUEST_S):
        await asyncio.get_running_loop().sock_sendall(conn, data)
