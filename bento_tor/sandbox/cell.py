"""One running sandbox: its end, from outside. How it came to be is jail.py's business.

What tells the outcome is here: bubblewrap's exit status, the reason we killed it for, the kernel's count of
kills for memory. None of it passes through the function's hands.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import SIGNAL_STATUS, Kind, Seen
from bento_tor.sandbox.cgroups import Group
from bento_tor.sandbox.proc import cut_down


class Cell:
    """A sandbox that was started. Waitable: `fileno` is readable when it is over.

    `control` is the stream to the driver, `log` the read end of what the function prints; both are the cell's
    to close. `pid` is the first process of its pid namespace: with it dies everything inside."""

    def __init__(
        self,
        *,
        process: subprocess.Popen[bytes],
        pid: int,
        control: socket.socket,
        log: FileIO,
        limits: Limits,
    ) -> None:
        self.pid = pid
        self.control = control
        self.log = log
        self.limits = limits
        self._process = process
        # By descriptor, not by number: a number may belong to somebody else by the time we kill.
        self._pid_fd = os.pidfd_open(pid)
        self._process_fd = os.pidfd_open(process.pid)
        self._killed: Kind | None = None
        self._group: Group | None = None
        # The listening end of its way out, where it may have one; to be handed on, and the cell's to close.
        self.maybe_door: socket.socket | None = None
        self.maybe_gate: socket.socket | None = None  # the same, of its way to the gate
        self.maybe_courier: socket.socket | None = None  # and to other boxes
        self._on_gone: list[Callable[[], None]] = []

    def join(self, group: Group) -> None:
        """Put it under the limits of `group`, which then is the cell's to remove. Raises SandboxError."""
        self._group = group
        group.add(self.pid)

    def cut_down_proc(self, timeout_s: float) -> None:
        """Let its /proc show its own processes only. Raises SandboxError."""
        cut_down(self.pid, self._process.pid, timeout_s)

    def change_limits(self, limits: Limits) -> None:
        """What the session that gets it may have: memory, processes, processor time. Raises SandboxError."""
        if self._group is not None:
            self._group.change(self.limits, limits)
        self.limits = limits

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once nothing of it is left."""
        self._on_gone.append(callback)

    def fileno(self) -> int:
        """Readable once the sandbox has ended."""
        return self._process_fd

    @property
    def ended(self) -> bool:
        """Whether its processes have ended; it still wants to be collected."""
        return self._process.poll() is not None

    def hand_over(self) -> None:
        """Close our copies of what has been passed on to the box."""
        self.control.close()
        self.log.close()
        for door in (self.maybe_door, self.maybe_gate, self.maybe_courier):
            if door is not None:
                door.close()

    def kill(self, reason: Kind) -> None:
        """End it, by a signal that nothing inside can catch. The first reason stays."""
        if self._killed is None and not self.ended:
            self._killed = reason
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        if not self.ended:
            self._process.kill()

    def maybe_excess(self) -> Kind | None:
        """Which limit of the whole session has been overstepped, if any: then it is to be killed.

        cgroup v1 kills one process for memory, and the others would go on without it."""
        if self._group is None:
            return None
        if self._group.oom_kills() > 0:
            return Kind.KILLED_MEMORY
        used_s = self._group.maybe_cpu_s()
        return Kind.KILLED_CPU if used_s is not None and used_s > self.limits.cpu_s else None

    def maybe_alarm(self) -> int | None:
        """A descriptor that becomes readable when it has met its limit of memory, as Group tells; ours to close."""
        return self._group.maybe_alarm() if self._group is not None else None

    def look_in_s(self) -> float:
        """Seconds until it can have used up its processor time, at the soonest: before, nobody need look."""
        used_s = self._group.maybe_cpu_s() if self._group is not None else None
        if used_s is None:
            return math.inf
        # What it may use in a second; more than the machine has it cannot.
        share = min(self.limits.cpu_percent / 100, os.cpu_count() or 1)
        return (self.limits.cpu_s - used_s) / share

    def wait(self, timeout_s: float) -> Seen:
        """Wait for its end and collect it. Raises SandboxError when it still runs after `timeout_s`
        seconds."""
        if not _readable(self._process_fd, timeout_s):
            raise SandboxError("the sandbox is still running")
        return self.collect()

    def collect(self) -> Seen:
        """What was seen of its end. Afterwards nothing of it is left: process, cgroup or descriptor."""
        status = self._process.wait()
        if status < 0:
            status = SIGNAL_STATUS - status
        self._reap()
        killed = self._killed if status == SIGNAL_STATUS + signal.SIGKILL else None
        seen = Seen(status, self._kernels_reason(status) if killed is None else killed)
        self.hand_over()
        os.close(self._process_fd)
        os.close(self._pid_fd)
        if self._group is None or self._group.destroy():
            for callback in self._on_gone:
                callback()
        # Else its user id stays out of use: something under it still lives.
        return seen

    def _kernels_reason(self, status: int) -> Kind | None:
        """Why the kernel ended it, where we did not."""
        if self._group is not None and self._group.oom_kills() > 0:
            return Kind.KILLED_MEMORY
        return Kind.KILLED_CPU if status == SIGNAL_STATUS + signal.SIGXCPU else None

    def _reap(self, timeout_s: float = 2.0) -> None:
        """The namespace's first process is ours once bubblewrap has gone: we are its subreaper."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        _readable(self._pid_fd, deadline - time.monotonic())
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pid_fd, os.WEXITED | os.WNOHANG)


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
