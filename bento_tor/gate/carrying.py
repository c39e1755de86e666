"""Streams of one session, carried through the gate: between its door and tor. No byte of them is looked at.

A connection at the door says a ticket, hears one byte, and is a stream from then on. Whoever has no ticket of that very
door's session is hung up on: a ticket of another session's opens nothing here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bento_tor.egress.door import Door, exactly
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
        self._caps = caps
        self._maybe_errand = maybe_errand
        self._bytes_out = self._bytes_in = 0
        self._door = Door(door, caps.connections + _HEARD_BEYOND, self._serve)

    def start(self) -> None:
        """Begin to accept, in the running event loop."""
        self._door.open()

    async def close(self) -> None:
        """Nothing of it is left."""
        await self._door.close()

    async def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TICKET_S):
                ticket = await exactly(conn, TICKET_BYTES)
            errand = self._maybe_errand(ticket)
            if errand is None:
                return
            if self._spent:
                await say(conn, Reply.BYTES)
            elif self._door.busy > self._caps.connections:
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
