"""The probe: attacks its own sandbox, tells what came of it, and waits. Text that travels, run by layers.py.

Standard library only; the entry is `f`. Every attempt is harmless where it succeeds.
"""

# It tries system calls, so it names them; `api` is put there by the driver.
# ruff: noqa: PTH108, PTH116, PTH123, F821

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CLONE_NEWUSER = 0x1000_0000
_BLOCK = bytes(65536)
api: "Any"


def attempt(action: "Callable[[], object]") -> str:
    """The name of the error that it ends in, or `worked`."""
    try:
        action()
    except OSError as why:
        return errno.errorcode.get(why.errno or 0, str(why))
    return "worked"


def unshare() -> None:
    """A user namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def connect() -> None:
    """Somewhere outside; a documentation address."""
    with socket.socket() as sock:
        sock.settimeout(1)
        sock.connect(("192.0.2.1", 80))


def fill(most: int) -> int:
    """How many bytes /data takes, up to `most`."""
    written = 0
    fd = os.open("/data/fill", os.O_CREAT | os.O_WRONLY)
    try:
        while written < most:
            written += os.write(fd, _BLOCK)
    except OSError:
        pass
    os.close(fd)
    os.unlink("/data/fill")
    return written


def make_files(most: int) -> int:
    """How many files /data takes, up to `most`."""
    made = 0
    try:
        while made < most:
            os.close(os.open(f"/data/{made}", os.O_CREAT))
            made += 1
    except OSError:
        pass
    for number in range(made):
        os.unlink(f"/data/{number}")
    return made


def map_code() -> None:
    """Code from a file that the function wrote."""
    with open("/data/code", "wb+") as file:
        file.write(_BLOCK)
        file.flush()
        mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()


def fork_all(most: int) -> int:
    """How many processes there may be at once, this one included."""
    read, write = os.pipe()
    count = 1
    try:
        while count < most:
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            count += 1
    except OSError:
        pass
    os.close(write)
    for _ in range(count - 1):
        os.wait()
    return count


def cpu_share() -> float:
    """The part of a processor that a busy loop gets."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + 0.6:
        pass
    return (time.process_time() - used) / (time.monotonic() - began)


def lock(kept: "list[int]") -> str:
    """Lock what others may see; the locks are held as long as `kept` is open."""
    for path in (os.__file__, "/dev/null"):
        kept.append(os.open(path, os.O_RDONLY))
        result = attempt(lambda: fcntl.flock(kept[-1], fcntl.LOCK_EX | fcntl.LOCK_NB))
        if result != "worked":
            return result
    return "worked"


def look_at_proc() -> str:
    """What there is of the kernel's: nothing (ENOENT), our own processes (own), or what should not be there."""
    for path in ("/sys", "/proc/1/mem", "/proc/meminfo", "/proc/sys/kernel/core_pattern"):
        if (result := attempt(partial(os.stat, path))) != "ENOENT":
            return f"{path} {result}"
    return "ENOENT" if attempt(lambda: os.stat("/proc")) == "ENOENT" else "own"


def f() -> None:
    """Tell all, then wait for the end."""
    kept: list[int] = []
    told = {
        "exec": attempt(lambda: os.execv("/usr/bin/python3", ["python3"])),  # noqa: S606 - it must fail
        "unshare": attempt(unshare),
        "write": attempt(lambda: os.close(os.open("/usr/lib/bento-tor", os.O_CREAT | os.O_WRONLY))),
        "proc": look_at_proc(),
        "connect": attempt(connect),
        "data_bytes": fill(4 << 20),
        "data_inodes": make_files(4096),
        "data_exec": attempt(map_code),
        "processes": fork_all(64),
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
        "cpu_share": cpu_share(),
        "locks": lock(kept),
    }
    api.send(json.dumps(told))
    api.recv()
