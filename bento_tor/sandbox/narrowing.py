"""Making the /data of a sandbox smaller that is up already, from outside. For root only.

A ready sandbox has the /data of the policy; a session may want less. The new mount calls (fspick, fsconfig) work on the
file system itself, whichever mount namespace it is in, so nobody has to go inside.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from bento_tor.errors import SandboxError

# Linux, include/uapi/linux/mount.h; the numbers of the calls are the same on every architecture (5.2 and later).
_FSCONFIG, _FSPICK = 431, 433
_FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 0x1, 0x8
_SET_STRING, _RECONFIGURE = 1, 7
# To the kernel a tmpfs of size 0 is one without a limit.
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def narrow_data(pid: int, before_bytes: int, size_bytes: int) -> None:
    """Give /data of the sandbox whose first process is `pid` the size `size_bytes`. Raises SandboxError.

    Only of one whose driver has reported, and has no code yet: before, its root is still the host's."""
    try:
        directory = os.open(Path("/proc", str(pid), "root", "data"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _size(directory) != _whole_pages(before_bytes):
                raise SandboxError("what a sandbox has at /data is not what it was given")
            reconfigure(directory, size=str(_whole_pages(size_bytes)))
            if (told := _size(directory)) != _whole_pages(size_bytes):
                raise SandboxError(f"/data has {told} bytes, not {size_bytes}")
        finally:
            os.close(directory)
    except OSError as why:
        raise SandboxError(f"/data cannot be made smaller: {why.strerror}") from why


def reconfigure(directory: int, **settings: str) -> None:
    """Change settings of the file system that a directory is in. Raises OSError."""
    context = _call(_FSPICK, directory, b"", _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
    try:
        for name, value in settings.items():
            _call(_FSCONFIG, context, _SET_STRING, name.encode(), value.encode(), 0)
        _call(_FSCONFIG, context, _RECONFIGURE, None, None, 0)
    finally:
        os.close(context)


def _size(directory: int) -> int:
    found = os.fstatvfs(directory)
    return found.f_blocks * found.f_frsize


def _whole_pages(size_bytes: int) -> int:
    return max(1, -(-size_bytes // _PAGE_BYTES)) * _PAGE_BYTES


def _call(number: int, *values: int | bytes | None) -> int:
    words = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in values]
    if (result := int(_libc.syscall(ctypes.c_long(number), *words))) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
