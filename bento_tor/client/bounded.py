"""Work on hostile text, in a process of its own with little time and memory: whatever it does, it ends there.

CPython's compiler takes exponential time for nested `finally` blocks, and its parser may run out of stack.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

CPU_S = 10
# Of address space, over what the process has when it begins.
MEMORY_BYTES = 1 << 30
# It may have to wait for a busy machine.
_WAIT_S = 60.0
_MAX_ANSWER_BYTES = 4 << 20


class GaveUp(Exception):
    """The work took more time or memory than it may, or broke its interpreter."""


def bounded(work: Callable[[], bytes]) -> bytes:
    """What `work` gives. Raises GaveUp. To be called where there are no other threads: it forks."""
    read_fd, write_fd = os.pipe()
    # A Ctrl-C must not come between: the child would go on with what is ours.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _work(work, write_fd)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_fd)
        answer = _read(read_fd, time.monotonic() + _WAIT_S)
    finally:
        os.close(read_fd)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    # A complete answer ends with the mark, whatever its process did then.
    if answer.endswith(b"\0"):
        return answer[:-1]
    raise GaveUp(f"status {status}")


def _work(work: Callable[[], bytes], fd: int) -> None:
    """In the child. Never returns, and says nothing."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        most = _address_space() + MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(work() + b"\0")
    finally:
        os._exit(0)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def _read(fd: int, deadline: float) -> bytes:
    """Everything until the end, or as much as comes in time."""
    parts, count = [], 0
    while (wait_s := deadline - time.monotonic()) > 0 and count < _MAX_ANSWER_BYTES:
        if select.select([fd], [], [], wait_s)[0]:
            part = os.read(fd, 1 << 16)
            if not part:
                break
            parts.append(part)
            count += len(part)
    return b"".join(parts)
