"""A private view of the file system: directories below a private home, shown where another user id can reach
them.

For root only, before it gives up its rights. The host's own mount table is never touched.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bento_tor.errors import SandboxError

VIEW = Path("/mnt")
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 1 << 19
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8


def private_view(directories: Mapping[str, Path]) -> dict[str, Path]:
    """Give this process (and its children) a mount namespace of its own where each directory is at VIEW/name.

    Gives name -> new path. It goes with the last process in it. Raises SandboxError."""
    _call("unshare", _CLONE_NEWNS)
    # A slave gets the host's mounts and passes none back.
    _mount("none", Path("/"), None, _MS_REC | _MS_SLAVE, None)
    with ExitStack() as stack:
        # Opened before VIEW is covered: a directory may itself lie below it.
        fds = {name: _open(path, stack) for name, path in directories.items()}
        _mount("bento-tor", VIEW, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0755,size=64k,nr_inodes=64")
        for name, fd in fds.items():
            (VIEW / name).mkdir(mode=0o755)
            _mount(f"/proc/self/fd/{fd}", VIEW / name, None, _MS_BIND, None)
    return {name: VIEW / name for name in directories}


def _open(path: Path, stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as why:
        raise SandboxError(f"the directory {path} cannot be opened: {why.strerror}") from why
    stack.callback(os.close, fd)
    return fd


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, str(target), kind, options)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*args) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SandboxError(f"this process cannot have mounts of its own ({name}: {reason})", hint="is it root?")
