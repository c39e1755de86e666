"""The box's way to its keeper: asks for sandboxes, learns how they ended. For asyncio.

What runs inside a sandbox is not read here; the control socket is handed on as it came.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from dataclasses import dataclass

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind, Seen
from bento_tor.sandbox import wire

_MAX_FDS = 2
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class LinkedCell:
    """A sandbox as the box has it: `control` (non-blocking stream to the driver) and `log_fd` (what is
    printed, to be read or the function blocks) are the box's to close. `pooled`: it was ready before it was asked
    for."""

    number: int
    control: socket.socket
    log_fd: int
    pooled: bool = False


class KeeperLink:
    """Talks to a Keeper over `sock`, the other end of its SOCK_SEQPACKET pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._numbers = itertools.count(1)
        self._starting: dict[int, asyncio.Future[LinkedCell]] = {}
        self._running: dict[int, asyncio.Future[Seen | None]] = {}
        self._looking: dict[int, asyncio.Future[str]] = {}
        self._open = False
        self._gone = asyncio.Event()
        # How many starts found a ready sandbox, and how many did not.
        self.pool_hits = 0
        self.cold_starts = 0

    def open(self) -> None:
        """Start listening, in the running event loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)
        self._open = True

    def close(self) -> None:
        """Stop listening. The keeper ends every sandbox."""
        if not self._open:
            return
        self._open = False
        self._gone.set()
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for start in self._starting.values():
            if not start.done():
                start.set_exception(SandboxError("the keeper of the sandboxes has gone"))
        for end in self._running.values():
            if not end.done():
                end.set_result(None)
        for look in self._looking.values():
            if not look.done():
                look.set_result("the keeper of the sandboxes has gone")
        self._starting.clear()

    async def gone(self) -> None:
        """Wait until the keeper has gone, or this is closed."""
        await self._gone.wait()

    @property
    def is_open(self) -> bool:
        """Whether there is a keeper to ask."""
        return self._open

    async def start(self, limits: Limits, *, image: int = 0) -> LinkedCell:
        """Start a sandbox of the keeper's image with this place in its list. Raises SandboxError where there is none
        to be had."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        start: asyncio.Future[LinkedCell] = loop.create_future()
        self._starting[number] = start
        self._running[number] = loop.create_future()
        try:
            self._ask(wire.Start(number, limits, image))
            return await asyncio.shield(start)
        except SandboxError:
            self._running.pop(number, None)
            raise
        except asyncio.CancelledError:
            start.add_done_callback(self._abandon)
            raise

    async def look(self) -> None:
        """Have the keeper read again what is blocked. Raises SandboxError where that does not hold now."""
        number = next(self._numbers)
        self._looking[number] = asyncio.get_running_loop().create_future()
        try:
            self._ask(wire.Look(number))
            if why := await self._looking[number]:
                raise SandboxError(why)
        finally:
            del self._looking[number]

    def leave(self) -> None:
        """Tell the keeper that the operator has ordered the end. Raises SandboxError where it does not hear."""
        self._ask(wire.Leave())

    def kill(self, number: int, reason: Kind) -> None:
        """End sandbox `number`, for `reason` (one of KILLS). Nothing happens where it has ended."""
        if number not in self._running or not self._open:
            return
        try:
            self._sock.send(wire.encode_request(wire.Kill(number, reason)))
        except BlockingIOError:
            # The keeper has much to read; an order to kill must not be lost for that.
            asyncio.get_running_loop().call_later(_RETRY_S, self.kill, number, reason)
        except OSError:
            self.close()  # the keeper has gone, and its sandboxes with it

    async def ended(self, number: int) -> Seen | None:
        """Wait for the end of sandbox `number`; None where the keeper itself has gone. To be asked once."""
        try:
            return await asyncio.shield(self._running[number])
        finally:
            if self._running[number].done():
                del self._running[number]

    def _ask(self, request: wire.Request) -> None:
        try:
            self._sock.send(wire.encode_request(request))
        except BlockingIOError as why:
            raise SandboxError("the keeper of the sandboxes is overloaded") from why
        except OSError as why:
            raise SandboxError("the keeper of the sandboxes has gone") from why

    def _abandon(self, start: asyncio.Future[LinkedCell]) -> None:
        """Nobody waits for this start any more: close what came, and end it."""
        if start.cancelled() or start.exception() is not None:
            return
        started = start.result()
        started.control.close()
        os.close(started.log_fd)
        self.kill(started.number, Kind.KILLED_OPERATOR)

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, wire.REPLY_BYTES + 1, _MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        reply = wire.decode_reply(data)
        if reply is None:
            self.close()
        elif isinstance(reply, wire.Started):
            self._started(reply, fds)
        elif isinstance(reply, wire.Failed):
            if (start := self._starting.pop(reply.number, None)) is not None:
                start.set_exception(SandboxError(reply.why))
        elif isinstance(reply, wire.Looked):
            if (look := self._looking.get(reply.number)) is not None and not look.done():
                look.set_result(reply.why)
        elif (end := self._running.get(reply.number)) is not None and not end.done():
            end.set_result(reply.seen)

    def _started(self, reply: wire.Started, fds: list[int]) -> None:
        start = self._starting.pop(reply.number, None)
        if start is None or len(fds) != _MAX_FDS:
            for fd in fds:
                os.close(fd)
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        control = socket.socket(fileno=fds[0])
        control.setblocking(False)
        self.pool_hits += reply.pooled
        self.cold_starts += not reply.pooled
        start.set_result(LinkedCell(reply.number, control, fds[1], reply.pooled))
