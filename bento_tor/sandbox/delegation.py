"""cgroup v2: makes our own group pass its controllers on to groups below it. Does not make those; cgroups.py does.

Works where our group was delegated to us (systemd: `Delegate=yes`), or where we are root and nobody else is in it.
Processes that are not ours are never moved: a root's login shell is not the box's to put elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from bento_tor.errors import SandboxError
from bento_tor.sandbox.hierarchies import LEAF, Place


def pass_on(place: Place) -> None:
    """Let groups below `place` have its controller. Raises SandboxError or OSError where we may not."""
    # The tree's first group may have processes, too. In any other the kernel would refuse `memory`, but take `pids`
    # and `cpu`, which makes of it a group of threads, and those below it unusable.
    if (place.path / "cgroup.type").exists():
        _empty(place.path)
    write_file(place.path / "cgroup.subtree_control", f"+{place.controller}")


def write_file(path: Path, value: str) -> None:
    """Write a kernel's file at once. Raises SandboxError, from the OSError."""
    # Not Path.write_text: Python's buffered files lose an error that comes when they are closed.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as why:
        raise SandboxError(f"{path.name}: {why.strerror}") from why


def _empty(group: Path) -> None:
    """Move its processes, all of them ours, into a leaf below it: the keeper, the box and the broker that it forked."""
    members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    if strangers := [pid for pid in members if not _is_ours(pid)]:
        raise SandboxError(f"other processes are in our cgroup: {strangers[0]}")
    leaf = group / LEAF
    if members:
        leaf.mkdir(exist_ok=True)
    for pid in members:
        try:
            write_file(leaf / "cgroup.procs", str(pid))
        except SandboxError as why:
            if not isinstance(why.__cause__, ProcessLookupError):  # it has just ended
                raise


def _is_ours(pid: int) -> bool:
    """Whether it is this process or comes from it. Not so 0: what the kernel shows for other pid namespaces."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return True  # it has just ended
    return pid == os.getpid()
