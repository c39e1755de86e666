"""Processes that the keeper has forked, and their end."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket

from bento_tor.egress.link import KeeperLine
from bento_tor.egress.process import Started

log = logging.getLogger(__name__)

_STOP_S = 10


class Neighbour:
    """A process beside the box, as the keeper has it: the gate, the courier. `line` tells it which sessions there are;
    `box` is the box's line to it. Call `stop` at the end."""

    def __init__(self, started: Started, name: str) -> None:
        self.line = KeeperLine(started.keeper)
        self.box: socket.socket = started.box
        self._pid = started.pid
        self._name = name

    def leave_to_box(self) -> socket.socket:
        """In the box's process, after the fork: its line; the keeper's is none of its business."""
        self.line.close()
        return self.box

    def stop(self) -> None:
        """It ends. What it has in tor goes with its connections, so it is gone at any rate."""
        self.line.close()
        end_child(self._pid, self._name, within_s=_STOP_S)


def end_child(pid: int, name: str, *, within_s: float) -> None:
    """Wait for a process that was told to end; insist if it does not go."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(within_s * 1000):
            log.warning("the %s did not end in %d seconds; killing it", name, within_s)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(fd)
