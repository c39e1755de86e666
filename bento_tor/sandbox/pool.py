"""The pool of ready sandboxes: interpreter up, confined, waiting for code. Each is used once, by one session.

Made with the most that any session may have. At hand-over memory, processes, processor time and the size of /data are
set to what the session may have. Where that cannot be done (no cgroup to set them in; /data without root), a session
that may have less starts cold. Who calls decides when there is time to refill; nothing here waits.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import frames
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.narrowing import narrow_data

log = logging.getLogger(__name__)

_READY = frames.HEADER.pack(frames.READY, 0)
# By the resource that a cgroup limits: what cannot be changed without one.
_FIXED = {"memory": "memory_bytes", "pids": "pids"}


class Pool:
    """Up to `size` cells of one of `jail`'s images (by its place), made with `limits`.

    `pool_hits`, `cold_starts`: how many starts found a cell here, and how many did not."""

    def __init__(self, jail: Jail, limits: Limits, size: int, *, image: int = 0) -> None:
        self._jail = jail
        self._limits = limits
        self._size = size
        self._image = image
        self._cells: deque[Cell] = deque()
        self.pool_hits = 0
        self.cold_starts = 0

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._cells

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def size(self) -> int:
        """The most that it holds."""
        return self._size

    @property
    def wants_more(self) -> bool:
        """Whether there is room for another."""
        return len(self._cells) < self._size

    def refill(self) -> Cell:
        """Make one more, which is not ready yet. Raises SandboxError."""
        cell = self._jail.start(self._limits, image=self._image)
        self._cells.append(cell)
        return cell

    def start(self, limits: Limits, taken: Callable[[Cell], object]) -> tuple[Cell, bool]:
        """A cell under `limits`, and whether it came from here; `taken` is told of each that leaves the pool.

        Raises SandboxError where none can be had."""
        while self._cells and self._suits(limits):
            cell = self._next()
            taken(cell)
            if cell.ended:
                cell.collect()
                continue
            if self._adapt(cell, limits):
                self.pool_hits += 1
                return cell, True
            break  # nor can the others: one session that asks for too little must not empty the pool
        self.cold_starts += 1
        return self._jail.start(limits, image=self._image), False

    def drop(self, cell: Cell) -> None:
        """One of ours has ended by itself."""
        self._cells.remove(cell)
        cell.collect()

    def close(self) -> None:
        """End all."""
        for cell in self._cells:
            cell.kill(Kind.KILLED_OPERATOR)
        while self._cells:
            self._cells.popleft().collect()

    def _suits(self, limits: Limits) -> bool:
        fixed = [field for resource, field in _FIXED.items() if resource not in self._jail.effective]
        fixed += [] if self._jail.counts_cpu else ["cpu_s"]
        if limits.data_bytes < self._limits.data_bytes:
            # Only where it stands already is there a /data to make smaller.
            fixed += [] if os.geteuid() == 0 and any(_is_ready(cell) for cell in self._cells) else ["data_bytes"]
        return all(getattr(limits, field) == getattr(self._limits, field) for field in fixed)

    def _next(self) -> Cell:
        """The first that has reported; else the oldest, which soon will."""
        for cell in self._cells:
            if _is_ready(cell):
                self._cells.remove(cell)
                return cell
        return self._cells.popleft()

    def _adapt(self, cell: Cell, limits: Limits) -> bool:
        """Set its limits. False: it was not to be used, and is gone."""
        try:
            if limits.data_bytes < self._limits.data_bytes:
                narrow_data(cell.pid, self._limits.data_bytes, limits.data_bytes)
            cell.change_limits(limits)
        except SandboxError as why:
            log.info("a ready sandbox cannot be given its limits: %s", why.message)
            cell.kill(Kind.LOST)
            cell.collect()
            return False
        return True


def _is_ready(cell: Cell) -> bool:
    """Whether the driver has reported, looked at without taking it from the box: no code has run there yet."""
    try:
        return cell.control.recv(len(_READY), socket.MSG_PEEK | socket.MSG_DONTWAIT) == _READY
    except OSError:
        return False
