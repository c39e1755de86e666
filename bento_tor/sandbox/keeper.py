"""The keeper: the process that may start and end sandboxes, at the word of the box, within limits of its own.

It may be root, so it trusts the box with nothing: requests have one size, limits are cut to the operator's
ceiling, the wall clock is enforced here, and whatever is not a request ends everything. It never reads a
function's bytes. Run it from the main thread.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import wire
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail

log = logging.getLogger(__name__)


class Keeper:
    """Serves one box over `sock`, our end of a SOCK_SEQPACKET pair. `ceiling`: the most that any session
    gets."""

    def __init__(
        self, sock: socket.socket, jail: Jail, *, ceiling: Limits | None = None, max_sessions: int = 16
    ) -> None:
        self._sock = sock
        self._jail = jail
        self._ceiling = ceiling or Limits()
        self._max_sessions = max_sessions
        self._cells: dict[int, Cell] = {}
        self._deadlines: dict[int, float] = {}
        self._serving = True

    def run(self, stop_fd: int) -> None:
        """Serve until `stop_fd` is readable or the box has gone. Then no sandbox is left."""
        self._sock.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(stop_fd, selectors.EVENT_READ, self._stop)
            selector.register(self._sock, selectors.EVENT_READ, lambda: self._receive(selector))
            try:
                while self._serving:
                    for key, _ in selector.select(self._wait_s()):
                        key.data()
                    self._end_overdue()
            finally:
                self._end_all()

    def _stop(self) -> None:
        self._serving = False

    def _wait_s(self) -> float | None:
        """Seconds until the next session's time is up."""
        if not self._deadlines:
            return None
        return max(0.0, min(self._deadlines.values()) - time.monotonic())

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for number in [number for number, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[number]
            self._cells[number].kill(Kind.KILLED_TIME)

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
            limits = clamp(request.limits, self._ceiling)
            cell = self._jail.start(limits)
        except SandboxError as why:
            self._reply(wire.Failed(number, why.message))
            return
        self._cells[number] = cell
        self._deadlines[number] = time.monotonic() + limits.wall_s
        selector.register(cell, selectors.EVENT_READ, lambda: self._collect(number, selector))
        self._reply(wire.Started(number), cell.control.fileno(), cell.log.fileno())
        # Else the box would never see the end of either.
        cell.hand_over()

    def _collect(self, number: int, selector: selectors.BaseSelector | None = None) -> None:
        cell = self._cells.pop(number)
        self._deadlines.pop(number, None)
        if selector is not None:
            selector.unregister(cell)
        self._reply(wire.Ended(number, cell.collect()))

    def _end_all(self) -> None:
        for cell in self._cells.values():
            cell.kill(Kind.KILLED_OPERATOR)
        for number in list(self._cells):
            self._collect(number)

    def _reply(self, reply: wire.Started | wire.Failed | wire.Ended, *fds: int) -> None:
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
    )
