"""Processes by pid and start time: start one, is it still there, end it.

A pid alone is reused by the kernel; with the start time (field 22 of /proc/PID/stat, in ticks since boot) it
names one process for as long as the machine runs. Signals go through a pidfd, so that they cannot hit a
successor.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bento_tor.errors import TorError

_POLL_S = 0.05


@dataclass(frozen=True)
class ProcessId:
    """One process: its pid, and when it started in clock ticks since boot."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether that very process still runs (a zombie does not)."""
        return identify(self.pid) == self


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None where there is none, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold spaces and parentheses itself: what follows the last one counts.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def find_program(name: str, package: str) -> str:
    """The path of a program. Raises TorError that names the Debian package where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/bin:/usr/bin")
    if path is None:
        raise TorError(f"the program {name} is not installed", hint=f"apt-get install {package}")
    return path


def start(argv: Sequence[str], *, output: Path) -> ProcessId:
    """Start a program in a session of its own, what it prints appended to `output`. It outlives us.

    Ctrl-C in the terminal does not reach it: whoever starts it decides. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # We may have been started with signals blocked or ignored (nohup, a background job): the program must
    # hear them.
    heard = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]
    pid = os.posix_spawn(
        argv[0], list(argv), os.environ, file_actions=actions, setsid=True, setsigmask=[], setsigdef=heard
    )
    found = identify(pid)
    # It may have ended already; its pid stays ours until it is reaped, so nothing else can be meant.
    return found if found is not None else ProcessId(pid, 0)


def find_by_arguments(argument: str, *, program: str = "") -> list[ProcessId]:
    """The running processes that were given exactly this argument, such as the path of a torrc of ours. `program`: only
    those of that name: an editor has the same path among its arguments."""
    wanted = os.fsencode(argument)
    found: list[ProcessId] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
                is_it = not program or (entry / "comm").read_text(errors="replace").rstrip("\n") == program
                if is_it and wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    maybe_process = identify(int(entry.name))
                    found += [maybe_process] if maybe_process else []
    return found


def end(
    processes: Iterable[ProcessId], *, ask: signal.Signals, patience_s: float, kill_wait_s: float = 5.0
) -> list[ProcessId]:
    """End processes: ask all, wait `patience_s` seconds for all, kill the rest, wait again. Returns the
    killed ones.

    Raises TorError where one survives even that (it hangs in the kernel, or belongs to somebody else)."""
    open_ones = {fd: process for process in processes if (fd := _maybe_open(process)) is not None}
    try:
        for fd, process in open_ones.items():
            _send(fd, process, ask)
        left = _wait(open_ones, patience_s)
        for fd, process in left.items():
            _send(fd, process, signal.SIGKILL)
        survivors = _wait(left, kill_wait_s)
    finally:
        for fd in open_ones:
            os.close(fd)
    if survivors:
        pids = ", ".join(str(process.pid) for process in survivors.values())
        raise TorError(f"these processes do not end, not even when killed: {pids}")
    return list(left.values())


def _maybe_open(process: ProcessId) -> int | None:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Now the pid cannot be reused under us: if it still is that process, the descriptor means it for good.
    if process.alive:
        return fd
    _reap(process.pid)
    os.close(fd)
    return None


def _send(fd: int, process: ProcessId, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return
    except PermissionError as why:
        raise TorError(f"process {process.pid} belongs to another user", hint="run this as that user") from why


def _wait(open_ones: dict[int, ProcessId], timeout_s: float) -> dict[int, ProcessId]:
    """Wait until all have ended; return those that have not."""
    left = dict(open_ones)
    deadline = time.monotonic() + timeout_s
    while left and (left_s := deadline - time.monotonic()) > 0:
        ready = select.select(list(left), [], [], min(left_s, 1.0))[0]
        for fd in ready:
            _reap(left.pop(fd).pid)
    return left


def _reap(pid: int) -> None:
    """Take the exit status of a child of ours that has ended; nothing for anybody else's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
