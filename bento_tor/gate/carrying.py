"""Streams of one session, carried through the gate: between its door and tor. No byte of them is looked at.

A connection at the door says a ticket, hears one byte, and is a stream from then on. Whoever has no ticket of that very
door's session is hung up on: a ticket of another session's opens nothing here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bento_tor.egress.grants import Caps
from bento_tor.egress.session import Idle
from bento_tor.egress.socks5 import Reply
from bento_tor.gate.words import TICKET_BYTES

_PIECE_BYTES = 64 * 1024
_TICKET_S = 10.0
# Connections beyond the cap that are heard and told so.
_HEARD_BEYOND = 8

# What a ticket is good for: gives the other end, or None where the door's end has said all that is to be said.
Errand = Callable[[socket.socket], Awaitable[socket.socket | None]]


class Carrier:
    """One session's door. `errand`: what a ticket stands for, if it stands for anything."""

    def __init__(self, door: socket.socket, caps: Caps, maybe_errand: Callable[[bytes], Errand | None]) -> None:
        self._door = door
        self._caps = caps
        self._maybe_errand = maybe_errand
        self._bytes_out = self._bytes_in = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(caps.connections + _HEARD_BEYOND)

    def start(self) -> None:
        """Begin to accept, in the running event loop."""
        self._door.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Nothing of it is left."""
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._door.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                conn, _ = await loop.sock_accept(self._door)
            except OSError:
                self._places.release()
                await asyncio.sleep(0.1)
                continue
            conn.setblocking(False)
            task = asyncio.create_task(self._serve(conn))
            self._tasks.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # looked at: a broken connection is no news

    async def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError, TimeoutError):
            ticket = await _ticket(conn)
            errand = self._maybe_errand(ticket)
            if errand is None:
                return
            if self._spent:
                await say(conn, Reply.BYTES)
            elif len(self._tasks) > self._caps.connections:
                await say(conn, Reply.CONNECTIONS)
            elif (other := await errand(conn)) is not None:
                with other:
                    await say(conn, Reply.OK)
                    await self._carry(conn, other)

    async def _carry(self, conn: socket.socket, other: socket.socket) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        idle = Idle(self._caps.idle_s, task)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(conn, other, idle, out=True))
                group.create_task(self._pump(other, conn, idle, out=False))
        except* OSError:
            pass  # either end has gone
        finally:
            idle.stop()

    async def _pump(self, source: socket.socket, sink: socket.socket, idle: Idle, *, out: bool) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _PIECE_BYTES):
            self._bytes_out += len(data) if out else 0
            self._bytes_in += 0 if out else len(data)
            if self._spent:
                raise ConnectionAbortedError("the session has sent or received all that it may")
            await loop.sock_sendall(sink, data)
            idle.touch()
        sink.shutdown(socket.SHUT_WR)

    @property
    def _spent(self) -> bool:
        return self._bytes_out > self._caps.bytes_out or self._bytes_in > self._caps.bytes_in


async def say(conn: socket.socket, code: int) -> None:
    """One byte; who does not take even that is not waited for."""
    async with asyncio.timeout(_TICKET_S):
        await asyncio.get_running_loop().sock_sendall(conn, bytes([code]))


async def _ticket(conn: socket.socket) -> bytes:
    data = b""
    async with asyncio.timeout(_TICKET_S):
        while len(data) < TICKET_BYTES:
            piece = await asyncio.get_running_loop().sock_recv(conn, TICKET_BYTES - len(data))
            if not piece:
                raise ConnectionAbortedError("hung up before the ticket")
            data += piece
    return data
