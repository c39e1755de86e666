"""Limits on a session as a whole: memory, processes, CPU. One chooser for cgroup v1, v2 and nothing.

Each controller is taken where it is: v2 where our own group has it and lets us pass it on, else the v1 mount,
below our own group there. What is missing is reported by `effective`, and then only the rlimits of each
process hold. In v2 a group either has processes or passes controllers on (Linux, admin-guide/cgroup-v2, "no
internal processes"), so our own processes go into a leaf of our group first; delegation.py does that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.sandbox.delegation import pass_on, write_file
from bento_tor.sandbox.hierarchies import Place, find_places

PREFIX = "bento-tor-"
_CPU_PERIOD_US = 100_000
_PAGE = os.sysconf("SC_PAGE_SIZE")
# How long a group that a killed keeper left may take to become empty.
_SWEEP_S = 5.0


class Group:
    """The cgroups of one session."""

    def __init__(self, paths: dict[str, tuple[int, Path]]) -> None:
        self._paths = paths

    def add(self, pid: int) -> None:
        """Put the process `pid` (one thread so far) under the limits. Raises SandboxError."""
        for _, path in self._paths.values():
            write_file(path / "cgroup.procs", str(pid))

    def change(self, before: Limits, limits: Limits) -> None:
        """Other limits than those of `before`, for processes that are in it. Raises SandboxError."""
        for controller, (version, path) in self._paths.items():
            settings = _settings(controller, version, limits)
            if settings != _settings(controller, version, before):
                for file, value in settings:
                    _set(path / file, value)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        if "memory" not in self._paths:
            return 0
        version, path = self._paths["memory"]
        try:
            text = (path / ("memory.events" if version == 2 else "memory.oom_control")).read_text()
        except OSError:
            return 0
        counts = dict(line.split() for line in text.splitlines())
        return int(counts.get("oom_kill", 0))

    def maybe_alarm(self) -> int | None:
        """A descriptor, the caller's to close, that becomes readable when they have met their limit of memory. None
        where nobody need look: v2 then ends all of them. Raises SandboxError where the kernel does not tell."""
        version, path = self._paths.get("memory", (2, Path()))
        if version == 2:
            return None
        alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            # Linux, admin-guide/cgroup-v1/memory, "OOM Control". The kernel keeps what it needs of the file.
            watched = os.open(path / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_file(path / "cgroup.event_control", f"{alarm} {watched}")
            finally:
                os.close(watched)
        except (OSError, SandboxError) as why:
            os.close(alarm)
            raise SandboxError(f"the kernel does not tell who met a limit of memory: {why}") from why
        return alarm

    def maybe_cpu_s(self) -> float | None:
        """The processor seconds of all its processes so far; None where nobody counts."""
        try:
            if "cpuacct" in self._paths:
                return int((self._paths["cpuacct"][1] / "cpuacct.usage").read_text()) / 1e9
            version, path = self._paths.get("cpu", (1, Path()))
            if version == 2:
                return int((path / "cpu.stat").read_text().split()[1]) / 1e6
        except (OSError, ValueError, IndexError):
            pass
        return None

    def destroy(self, timeout_s: float = 2.0) -> bool:
        """Kill what is left in them, where the kernel can do that at once (v2, Linux 5.14), and remove them.

        Whether that worked in time. False: something still lives there."""
        for version, path in self._paths.values():
            if version == 2:
                with suppress(SandboxError):
                    write_file(path / "cgroup.kill", "1")
        deadline = time.monotonic() + timeout_s
        left = {path for _, path in self._paths.values()}
        while left:
            left = {path for path in left if not _remove(path)}
            if left and time.monotonic() >= deadline:
                return False
            if left:
                time.sleep(0.002)
        return True


class Cgroups:
    """The cgroups of one keeper: a directory of its own in each hierarchy, one leaf below it for each
    session."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = list(places)
        self._own: dict[str, tuple[int, Path]] = {}
        self._made: set[Path] = set()

    @classmethod
    def of_this_process(cls) -> Cgroups:
        """The chooser, for where we are."""
        text = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
        return cls(find_places(*text))

    def open(self) -> None:
        """Sweep up after keepers that were killed, and make our own directories where we may."""
        name = f"{PREFIX}{_stamp(os.getpid())}-{os.urandom(3).hex()}"
        for place in self._places:
            _sweep(place.path)
            path = place.path / name
            try:
                if place.version == 2:
                    pass_on(place)
                path.mkdir(exist_ok=True)
                if place.version == 2:
                    write_file(path / "cgroup.subtree_control", f"+{place.controller}")
            except (OSError, SandboxError):
                continue  # not ours to use: `effective` says so
            finally:
                self._made.add(path)
            self._own[place.controller] = (place.version, path)

    def close(self) -> None:
        """Remove our directories."""
        for path in self._made:
            _remove(path)
        self._made.clear()
        self._own.clear()

    @property
    def effective(self) -> frozenset[str]:
        """The controllers whose limits hold."""
        return frozenset(self._own) - {"cpuacct"}

    @property
    def counts_cpu(self) -> bool:
        """Whether processor seconds are counted for a session as a whole."""
        return "cpuacct" in self._own or self._own.get("cpu", (1, Path()))[0] == 2

    @property
    def denies_swap(self) -> bool:
        """Whether memory of a session is never swapped out: the host has no swap, or we may forbid it."""
        with suppress(OSError):
            if len(Path("/proc/swaps").read_text().splitlines()) <= 1:
                return True
        version, path = self._own.get("memory", (0, Path()))
        file = "memory.swap.max" if version == 2 else "memory.memsw.limit_in_bytes"
        return version != 0 and (path / file).exists()

    def create(self, name: str, limits: Limits) -> Group:
        """Cgroups with `limits`, still empty. Raises SandboxError; then nothing is left."""
        group = Group({key: (version, path / name) for key, (version, path) in self._own.items()})
        try:
            for controller, (version, parent) in self._own.items():
                (parent / name).mkdir(exist_ok=True)
                for file, value in _settings(controller, version, limits):
                    _set(parent / name / file, value)
        except (OSError, SandboxError) as why:
            group.destroy(0)
            raise SandboxError(f"a limit cannot be set: {why}") from why
        return group


def _settings(controller: str, version: int, limits: Limits) -> list[tuple[str, str]]:
    memory, quota = str(limits.memory_bytes // _PAGE * _PAGE), limits.cpu_percent * _CPU_PERIOD_US // 100
    # One more process: bubblewrap's own first one.
    pids = [("pids.max", str(limits.pids + 1))]
    if version == 2:
        # No memory.high: it only slows a memory bomb down, for half a minute.
        swap = [("memory.swap.max?", "0"), ("memory.oom.group", "1")]
        cpu = [("cpu.max", f"{quota} {_CPU_PERIOD_US}")]
        return {"memory": [("memory.max", memory), *swap], "pids": pids, "cpu": cpu}.get(controller, [])
    swap = [("memory.memsw.limit_in_bytes?", memory), ("memory.swappiness", "0")]
    cpu = [("cpu.cfs_period_us", str(_CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return {"memory": [("memory.limit_in_bytes", memory), *swap], "pids": pids, "cpu": cpu}.get(controller, [])


def _set(path: Path, value: str) -> None:
    """Write and read back. A name with `?` is left out where the kernel has no such file."""
    if path.name.endswith("?"):
        path = path.with_name(path.name[:-1])
        if not path.exists():
            return
    write_file(path, value)
    if (told := path.read_text().strip()) != value:
        raise SandboxError(f"{path.name} is {told}, not {value}")


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _stamp(pid: int) -> str:
    """A process, named so that a later one with its number is not mistaken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}-gone"
    return f"{pid}-{fields[19]}"


def _sweep(parent: Path) -> None:
    """Remove what keepers left that were killed with -9. Their functions died with them; make sure of it."""
    for path in parent.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if not pid.isdigit() or path.name.startswith(f"{PREFIX}{_stamp(int(pid))}-"):
            continue
        for leaf in [*path.glob("*/"), path]:
            with suppress(OSError, ValueError):
                for member in (leaf / "cgroup.procs").read_text().split():
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(int(member), signal.SIGKILL)
            # A busy machine takes its time to end a process that is dead already.
            Group({"": (2, leaf)}).destroy(_SWEEP_S)
