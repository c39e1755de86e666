"""A process that the keeper has forked, and its end."""

from __future__ import annotations

import logging
import os
import select
import signal

log = logging.getLogger(__name__)


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
