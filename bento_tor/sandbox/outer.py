"""The outer step: what is arranged around bubblewrap, in the forked child, before it becomes bubblewrap.

In a mount namespace of the session's own: /data with caps on bytes and inodes; as root also the image through an
overlay of its own and device nodes of its own, because a lock on an inode that two functions share is a channel
between them. In a time namespace: how long the host has been up is told to nobody. The host's mounts stay as they are;
everything goes with the session's last process.

Runs between fork and exec, so it only makes system calls. Failures are OSError.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from bento_tor.sandbox.spec import STAGE, Stage

_CLONE_NEWTIME, _CLONE_NEWNS, _CLONE_NEWUSER = 0x80, 0x20000, 0x1000_0000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
# Major and minor numbers of the memory devices (Linux, admin-guide/devices.txt).
_DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}
_STAGE_OPTIONS = "mode=0755,size=64k,nr_inodes=32"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outer:
    """What to arrange. `maybe_uid`: as root, the session's user; else None, and a user namespace makes up for root.

    `lowers`: by name below STAGE, the directories that are shown through an overlay."""

    stage: Stage
    maybe_uid: int | None
    data_bytes: int
    data_inodes: int
    lowers: Mapping[str, str]

    def arrange(self) -> None:
        """Arrange it for this process and its children. Its user is unchanged yet. Raises OSError."""
        owner = (os.getuid(), os.getgid()) if self.maybe_uid is None else (self.maybe_uid, self.maybe_uid)
        if self.maybe_uid is None:
            _become_owner(*owner)
        _unshare(_CLONE_NEWNS)
        with suppress(OSError):  # a kernel without time namespaces; `layers` says so
            _hide_uptime()
        # A slave gets the host's mounts and passes none back.
        _mount("none", "/", None, _MS_REC | _MS_SLAVE, None)
        # Opened before STAGE is covered: an image may lie below it.
        fds = {name: os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name, path in self.lowers.items()}
        os.umask(0)
        # Not nodev: the devices are here.
        _mount("bento-tor", STAGE, "tmpfs", _MS_NOSUID, _STAGE_OPTIONS)
        for name in ("data", "dev", "empty", *fds):
            os.mkdir(f"{STAGE}/{name}", 0o755)  # noqa: PTH102 - between fork and exec: a bare system call
        self._mount_data(*owner)
        if self.stage.devices:
            for name, numbers in _DEVICES.items():
                os.mknod(f"{STAGE}/dev/{name}", 0o20666, os.makedev(*numbers))
        for name, fd in fds.items():
            # Two layers, for one is refused; without an upper one it cannot be written.
            layers = f"lowerdir=/proc/self/fd/{fd}:{STAGE}/empty"
            _mount("overlay", f"{STAGE}/{name}", "overlay", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, layers)
        os.umask(0o022)

    def _mount_data(self, uid: int, gid: int) -> None:
        # One more inode: the directory itself.
        caps = f"size={self.data_bytes},nr_inodes={self.data_inodes + 1}"
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _mount("data", f"{STAGE}/data", "tmpfs", flags, f"mode=0700,uid={uid},gid={gid},{caps}")


def can_overlay(outer: Outer) -> bool:
    """Whether this kernel and these directories can do it, tried in a child process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            outer.arrange()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _become_owner(uid: int, gid: int) -> None:
    """A user namespace in which an ordinary user may mount; bubblewrap makes its own below it."""
    _unshare(_CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        _write(f"/proc/self/{name}", text)


def _hide_uptime() -> None:
    """For the children: clocks that start about now. Linux, time_namespaces(7)."""
    now = [(name, int(time.clock_gettime(clock))) for name, clock in _CLOCKS]
    _unshare(_CLONE_NEWTIME)
    _write("/proc/self/timens_offsets", "".join(f"{name} -{seconds} 0\n" for name, seconds in now))


_CLOCKS = (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))


def _unshare(flag: int) -> None:
    if _libc.unshare(flag) != 0:
        raise OSError(ctypes.get_errno(), f"no new namespace can be made: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    if _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        raise OSError(ctypes.get_errno(), f"{target} cannot be mounted: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    """All at once: a map is taken whole or not at all."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
