"""The /proc of a sandbox that has one, cut down from outside to its own processes, while it waits to be let go.

bubblewrap mounts a whole /proc; what the kernel tells there of the machine goes by the option `subset=pid` (Linux 5.8),
which bubblewrap cannot set. What it can do is in spec.py: the sandbox's first process is covered.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

from bento_tor.errors import SandboxError
from bento_tor.sandbox.narrowing import reconfigure

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x1000_0000
_OPTIONS = {"subset": "pid", "hidepid": "ptraceable"}
_WAIT_S = 0.001
_libc = ctypes.CDLL(None, use_errno=True)


def cut_down(pid: int, outside: int, timeout_s: float) -> None:
    """Leave only processes in the /proc of the sandbox whose first process is `pid`. Raises SandboxError.

    `outside`: bubblewrap outside of it; without root, whose user namespace it takes."""
    deadline = time.monotonic() + timeout_s
    try:
        # Until its root is its own, what is there is the host's /proc, which nobody may touch.
        while (directory := _maybe_open(Path("/proc", str(pid), "root", "proc"))) is None:
            if time.monotonic() > deadline:
                raise SandboxError("the sandbox does not come to have a /proc of its own")
            time.sleep(_WAIT_S)
        try:
            if os.geteuid() == 0:
                reconfigure(directory, **_OPTIONS)
            else:
                _go_and_cut(directory, pid, outside)
            if _maybe_device("meminfo", directory) is not None:
                raise SandboxError("the sandbox's /proc tells more than its processes")
        finally:
            os.close(directory)
    except OSError as why:
        raise SandboxError(f"a sandbox cannot have a /proc of its own: {why.strerror}") from why


def _maybe_open(path: Path) -> int | None:
    """The sandbox's /proc, once it is that: one whose first process is covered, as no host's is."""
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    here, first = os.fstat(directory).st_dev, _maybe_device("1", directory)
    if here == Path("/proc").stat().st_dev or first in (here, None):
        os.close(directory)
        return None
    return directory


def _maybe_device(name: str, directory: int) -> int | None:
    try:
        return os.stat(name, dir_fd=directory).st_dev
    except OSError:
        return None


def _go_and_cut(directory: int, pid: int, outside: int) -> None:
    """The same by an ordinary user, who has the right only in there: a child goes in."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # The sandbox's own user namespace is one below that of its mounts; this is the one above both.
            for owner, name, kind in ((outside, "user", _CLONE_NEWUSER), (pid, "mnt", _CLONE_NEWNS)):
                fd = os.open(f"/proc/{owner}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                if _libc.setns(fd, kind) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            reconfigure(directory, **_OPTIONS)
            status = 0
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise SandboxError("an ordinary user cannot give a sandbox a /proc of its own here")
