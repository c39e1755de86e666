"""The keeper: the process that may start and end sandboxes, at the word of the box, within limits of its own.

It may be root, so it trusts the box with nothing: requests have one size, limits are cut to the operator's
ceiling, the wall clock is enforced here, and whatever is not a request ends everything. It never reads a
function's bytes. Run it from the main thread.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Protocol

from bento_tor.errors import BentoError, SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import wire
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.pool import Pool

log = logging.getLogger(__name__)

# How soon is looked again at what a function has used, where it may be about to use up what it has.
_LOOK_S = 0.5
# The kernel tells of a limit of memory before it kills for it.
_ALARM_S = 0.05
_ALARMED_S = 5.0
# The pool: how many by default, how long nobody must have wanted anything, how long after a failure.
POOL_SIZE = 4
_QUIET_S = 0.02
_RETRY_S = 5.0


class Egress(Protocol):
    """Where the listening sockets of sandboxes go. The broker's line; see bento_tor/egress/link.py."""

    def offer(self, number: int, listener: socket.socket) -> None:
        """Session `number` runs behind this socket, of which the caller closes its copy."""

    def end(self, number: int) -> None:
        """Session `number` is over."""


class Keeper:
    """Serves one box over `sock`, our end of a SOCK_SEQPACKET pair. `ceiling`: the most that any session gets.
    `egress`, `gate`, `courier`: who serves the sessions' ways out, to tor and to other boxes, if anybody does.
    `pool_size`: how many sandboxes of each image are kept ready. `maybe_look`: read again what is blocked;
    raises BentoError."""

    def __init__(
        self,
        sock: socket.socket,
        jail: Jail,
        *,
        ceiling: Limits | None = None,
        max_sessions: int = 16,
        egress: Egress | None = None,
        gate: Egress | None = None,
        courier: Egress | None = None,
        pool_size: int = POOL_SIZE,
        maybe_look: Callable[[], None] | None = None,
    ) -> None:
        self._sock = sock
        self._jail = jail
        self._ceiling = ceiling or Limits()
        self._max_sessions = max_sessions
        self._egress = egress
        self._gate = gate
        self._courier = courier
        self._cells: dict[int, Cell] = {}
        self._deadlines: dict[int, float] = {}
        # When to look at a cell next; until when to look often; what the kernel tells of its memory.
        self._looks: dict[int, float] = {}
        self._alarmed: dict[int, float] = {}
        self._alarms: dict[int, int] = {}
        self._pools = [Pool(jail, self._ceiling, pool_size, image=place) for place in range(len(jail.images))]
        self._refill_after = 0.0
        self._maybe_look = maybe_look
        self._serving = True
        # Whether the box has said that the operator ordered the end.
        self.leaving = False

    def count_ready(self) -> tuple[int, int]:
        """How many sandboxes wait for code, of at most how many. From any thread."""
        return sum(len(pool) for pool in self._pools), sum(pool.size for pool in self._pools)

    def run(self, stop_fd: int) -> None:
        """Serve until `stop_fd` is readable or the box has gone. Then no sandbox is left."""
        self._sock.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(stop_fd, selectors.EVENT_READ, self._stop)
            selector.register(self._sock, selectors.EVENT_READ, lambda: self._receive(selector))
            try:
                while self._serving:
                    events = selector.select(self._wait_s())
                    for key, _ in events:
                        key.data()
                    self._end_overdue()
                    if not events:
                        self._refill(selector)
            finally:
                self._end_all()
                for pool in self._pools:
                    pool.close()

    def _stop(self) -> None:
        self._serving = False

    def _wait_s(self) -> float | None:
        """Seconds until the next session's time is up, or the next look at what they have used, or a quiet moment."""
        now = time.monotonic()
        # Where nobody counts processor time there is no look to wait for.
        times = [at for at in (*self._deadlines.values(), *self._looks.values()) if at < math.inf]
        if any(pool.wants_more for pool in self._pools):
            times.append(max(now + _QUIET_S, self._refill_after))
        return max(0.0, min(times) - now) if times else None

    def _refill(self, selector: selectors.BaseSelector) -> None:
        """One more ready sandbox, when nobody wants anything: who waits for a start goes first."""
        pool = next((pool for pool in self._pools if pool.wants_more), None)
        if pool is None or time.monotonic() < self._refill_after:
            return
        try:
            cell = pool.refill()
        except SandboxError as why:
            log.warning("no sandbox can be kept ready: %s", why.message)
            self._refill_after = time.monotonic() + _RETRY_S
            return
        selector.register(cell, selectors.EVENT_READ, lambda: self._drop(cell, pool, selector))

    def _drop(self, cell: Cell, pool: Pool, selector: selectors.BaseSelector) -> None:
        """A ready sandbox has ended by itself. One that always does must not keep us busy."""
        if cell in pool:
            selector.unregister(cell)
            pool.drop(cell)
            self._refill_after = time.monotonic() + _RETRY_S

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for number in [number for number, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[number]
            self._cells[number].kill(Kind.KILLED_TIME)
        for number in [number for number, at in self._looks.items() if at <= now]:
            cell = self._cells[number]
            if (excess := cell.maybe_excess()) is not None:
                cell.kill(excess)
            often = now < self._alarmed.get(number, 0)
            self._looks[number] = now + (_LOOK_S if often else max(_LOOK_S, cell.look_in_s()))

    def _watch(self, number: int, selector: selectors.BaseSelector) -> None:
        """Learn of its limits: of memory from the kernel, of processor time by a look when it may have used it up."""
        self._looks[number] = time.monotonic() + _LOOK_S
        try:
            alarm = self._cells[number].maybe_alarm()
        except SandboxError as why:
            log.info("memory is looked at again and again: %s", why.message)
            self._alarmed[number] = math.inf
            return
        if alarm is not None:
            self._alarms[number] = alarm
            selector.register(alarm, selectors.EVENT_READ, lambda: self._be_alarmed(number, alarm))

    def _be_alarmed(self, number: int, alarm: int) -> None:
        if self._alarms.get(number) != alarm:
            return  # it has ended meanwhile
        os.eventfd_read(alarm)
        now = time.monotonic()
        self._alarmed[number], self._looks[number] = now + _ALARMED_S, min(self._looks[number], now + _ALARM_S)

    def _stop_watching(self, number: int, selector: selectors.BaseSelector | None) -> None:
        self._looks.pop(number, None)
        self._alarmed.pop(number, None)
        if (alarm := self._alarms.pop(number, None)) is not None:
            if selector is not None:
                selector.unregister(alarm)
            os.close(alarm)

    def _receive(self, selector: selectors.BaseSelector) -> None:
        try:
            data = self._sock.recv(wire.REQUEST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        request = wire.decode_request(data)
        if isinstance(request, wire.Start):
            self._start(request, selector)
        elif isinstance(request, wire.Kill):
            if request.number in self._cells:
                self._cells[request.number].kill(request.reason)
        elif isinstance(request, wire.Look):
            self._reply(wire.Looked(request.number, self._look_again()))
        elif isinstance(request, wire.Leave):
            self.leaving = True
        else:
            if data:
                log.warning("the box sent what is no request: ending all its sessions")
            self._serving = False

    def _start(self, request: wire.Start, selector: selectors.BaseSelector) -> None:
        number = request.number
        try:
            if number in self._cells:
                raise SandboxError("this session number is in use")
            if len(self._cells) >= self._max_sessions:
                raise SandboxError("as many functions run as may")
            if request.image >= len(self._pools):
                raise SandboxError("there is no such image")
            limits = clamp(request.limits, self._ceiling)
            cell, pooled = self._pools[request.image].start(limits, selector.unregister)
        except SandboxError as why:
            self._reply(wire.Failed(number, why.message))
            return
        self._cells[number] = cell
        self._deadlines[number] = time.monotonic() + limits.wall_s
        selector.register(cell, selectors.EVENT_READ, lambda: self._collect(number, selector))
        self._watch(number, selector)
        if self._egress is not None and cell.maybe_door is not None:
            self._egress.offer(number, cell.maybe_door)
        if self._gate is not None and cell.maybe_gate is not None:
            self._gate.offer(number, cell.maybe_gate)
        if self._courier is not None and cell.maybe_courier is not None:
            self._courier.offer(number, cell.maybe_courier)
        self._reply(wire.Started(number, pooled), cell.control.fileno(), cell.log.fileno())
        # Else the box would never see the end of either.
        cell.hand_over()

    def _look_again(self) -> str:
        """Why what is blocked does not hold; nothing where it does."""
        try:
            if self._maybe_look is not None:
                self._maybe_look()
        except BentoError as error:
            return error.message
        return ""

    def _collect(self, number: int, selector: selectors.BaseSelector | None = None) -> None:
        cell = self._cells.pop(number)
        self._deadlines.pop(number, None)
        self._stop_watching(number, selector)
        for way in (self._egress, self._gate, self._courier):
            if way is not None:
                way.end(number)
        if selector is not None:
            selector.unregister(cell)
        self._reply(wire.Ended(number, cell.collect()))

    def _end_all(self) -> None:
        for cell in self._cells.values():
            cell.kill(Kind.KILLED_OPERATOR)
        for number in list(self._cells):
            self._collect(number)

    def _reply(self, reply: wire.Reply, *fds: int) -> None:
        try:
            socket.send_fds(self._sock, [wire.encode_reply(reply)], list(fds))
        except BlockingIOError:
            log.warning("the box does not listen: ending all its sessions")
            self._serving = False
        except OSError:
            self._serving = False


def clamp(limits: Limits, ceiling: Limits) -> Limits:
    """`limits`, no more than `ceiling` and no less than 1 each: a zero would mean "without limit" to the
    kernel."""

    def cut(value: int, most: int) -> int:
        return max(1, min(value, most))

    return Limits(
        memory_bytes=cut(limits.memory_bytes, ceiling.memory_bytes),
        pids=cut(limits.pids, ceiling.pids),
        cpu_percent=cut(limits.cpu_percent, ceiling.cpu_percent),
        wall_s=cut(limits.wall_s, ceiling.wall_s),
        data_bytes=cut(limits.data_bytes, ceiling.data_bytes),
        open_files=cut(limits.open_files, ceiling.open_files),
        cpu_s=cut(limits.cpu_s, ceiling.cpu_s),
        data_inodes=cut(limits.data_inodes, ceiling.data_inodes),
    )
