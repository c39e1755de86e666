"""What this host can enforce, layer by layer, found by trying it: a probe attacks from inside, we look from outside.

A layer is effective only where an attempt was seen to fail. Reports; who must not serve without is the caller's choice.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bento_tor import resources
from bento_tor.errors import SandboxError
from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import frames
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.jail import Jail

_TIMEOUT_S = 20.0
_PROBE_LIMITS = Limits(memory_bytes=96 * MIB, pids=12, cpu_percent=50, data_bytes=MIB, data_inodes=32)
_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup", "mnt")
_BOMB = b"def f():\n    kept = []\n    while True: kept.append(bytearray(1 << 20))\n"
_ENDLESS = b"def f():\n    while True: pass\n"
_REPLY_BYTES = 65536
# Without these no stranger's code may run, on whatever host.
ESSENTIAL = frozenset(
    {"namespaces", "user", "no-new-privs", "capabilities", "seccomp", "read-only", "data-size", "no-proc", "network"}
    | {"locks", "time"}
)
# What a box promises for a session as a whole that says it has cgroups.
BY_CGROUPS = frozenset({"memory", "pids", "cpu", "cpu-seconds"})
# The kernel's own judgement of egress, behind the broker's; tried elsewhere, by who knows of egress.
KERNEL_RULES = "kernel-rules"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: whether it holds here, and how that was seen (or what was seen instead)."""

    name: str
    effective: bool
    how: str


class Told(msgspec.Struct, frozen=True):
    """What the probe tells of its attempts: an errno's name, or `worked`."""

    exec: str
    unshare: str
    write: str
    proc: str
    connect: str
    data_bytes: int
    data_inodes: int
    data_exec: str
    processes: int
    uptime_s: float
    cpu_share: float
    locks: str


def probe(jail: Jail) -> tuple[Layer, ...]:
    """Try them all, in sandboxes of `jail`: three, and one for each profile besides. Takes about two seconds for each
    profile. Raises SandboxError where none starts."""
    # One image of each profile: nothing else of an image makes a difference.
    places = {image.profile: place for place, image in reversed(list(enumerate(jail.images)))}
    tried = [tuple(_probe(jail, place)) for place in sorted(places.values())]
    worst = [min(same, key=lambda layer: layer.effective) for same in zip(*tried, strict=True)]
    return (*worst, _try_memory(jail), _try_kill(jail))


def _probe(jail: Jail, place: int) -> Iterator[Layer]:
    with _running(jail, resources.read_text("sandbox", "probe.py").encode(), place=place) as cell:
        told = _ask(cell)
        yield from _seen_outside(jail, cell)
        yield from _told_inside(jail, told, browser=bool(jail.images[place].browser))
        yield _try_locks(told, jail)


def missing(layers: tuple[Layer, ...], claimed: frozenset[str] = frozenset()) -> list[Layer]:
    """Those that do not hold and should: the essential ones, and what somebody has `claimed` besides."""
    return [layer for layer in layers if layer.name in ESSENTIAL | claimed and not layer.effective]


@contextmanager
def _running(jail: Jail, source: bytes, limits: Limits = _PROBE_LIMITS, place: int = 0) -> Iterator[Cell]:
    cell = jail.start(limits, image=place)
    try:
        cell.control.sendall(frames.encode_code("f", "([], {})", source))
        yield cell
    finally:
        cell.kill(Kind.KILLED_OPERATOR)
        cell.collect()


def _ask(cell: Cell) -> Told:
    """The probe's first message; it then waits, with its locks held."""
    cell.control.settimeout(_TIMEOUT_S)
    reader, seen = frames.FrameReader(), b""
    try:
        while data := cell.control.recv(_REPLY_BYTES):
            for frame in reader.feed(data):
                if isinstance(frame, frames.Message):
                    seen += frame.data
                    if frame.end:
                        return msgspec.json.decode(seen, type=Told)
                elif isinstance(frame, frames.Raised):
                    raise SandboxError(f"the probe of the sandbox failed: {frame.traceback[-300:]}")
    except (OSError, msgspec.MsgspecError) as why:
        raise SandboxError(f"the probe of the sandbox gives no answer: {why}") from why
    raise SandboxError("the probe of the sandbox ended without an answer")


def _seen_outside(jail: Jail, cell: Cell) -> Iterator[Layer]:
    driver = _driver_pid(cell)
    shared = [name for name in _NAMESPACES if _namespace(driver, name) == _namespace(os.getpid(), name)]
    yield _layer("namespaces", not shared, "each differs from ours", f"shared with ours: {', '.join(shared)}")
    lines = Path(f"/proc/{driver}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    uid = int(status["Uid"].split()[0])
    yield _layer("user", uid != 0, f"user id {uid} on the host", "it runs as root on the host")
    yield _layer("no-new-privs", status["NoNewPrivs"] == "1", "set", "not set")
    capabilities = {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
    yield _layer("capabilities", capabilities == {0}, "none", "it has some")
    ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(driver)
    yield _layer("own-core", theirs < ours, f"one of {len(ours)} is left to tor", "there is one processor only")
    counted = jail.counts_cpu
    yield _layer("cpu-seconds", counted, "counted for the whole session", "counted for each process only")
    yield _layer("swap", jail.denies_swap, "its memory is not swapped out", "its memory may be swapped out")


def _told_inside(jail: Jail, told: Told, *, browser: bool) -> Iterator[Layer]:
    # What may start Chromium may start programs; there is no /usr/bin/python3.
    filtered = told.unshare == "EPERM" and told.exec == ("ENOENT" if browser else "EPERM")
    calls = "unshare: EPERM" if browser else "execve, unshare: EPERM"
    yield _layer("seccomp", filtered, calls, f"execve: {told.exec}, unshare: {told.unshare}")
    yield _layer("read-only", told.write == "EROFS", "writing outside /data: EROFS", f"writing outside: {told.write}")
    size, inodes = told.data_bytes <= _PROBE_LIMITS.data_bytes, told.data_inodes <= _PROBE_LIMITS.data_inodes
    yield _layer("data-size", size, "full at its size", f"{told.data_bytes} bytes could be written")
    yield _layer("data-inodes", inodes, "full at its number", f"{told.data_inodes} files could be made")
    yield _layer("data-noexec", told.data_exec == "EPERM", "mapping code: EPERM", f"mapping code: {told.data_exec}")
    hidden = told.proc == ("own" if browser else "ENOENT")
    yield _layer("no-proc", hidden, "its own processes only" if browser else "no /proc, no /sys", f"seen: {told.proc}")
    unreachable = told.connect == "ENETUNREACH"
    yield _layer("network", unreachable, "connecting: ENETUNREACH", f"connecting: {told.connect}")
    few = told.processes <= _PROBE_LIMITS.pids
    yield _layer("pids", few, f"{told.processes} at once, then EAGAIN", f"{told.processes} at once")
    slow = told.cpu_share < 0.75 and "cpu" in jail.effective
    yield _layer("cpu", slow, f"{told.cpu_share:.0%} of a core at 50%", f"{told.cpu_share:.0%} of a core at 50%")
    hidden = told.uptime_s < time.clock_gettime(time.CLOCK_BOOTTIME) - _TIMEOUT_S
    yield _layer("uptime", hidden, "its clocks began with it", "it sees how long the host has been up")


def _try_locks(told: Told, jail: Jail) -> Layer:
    """The probe holds locks, or was refused them: whoever else locks the same file must not notice."""
    if told.locks == "EPERM":
        return Layer("locks", True, "denied")
    noticed = [path for path in (f"{jail.images[0].stdlib}/os.py", "/dev/null") if not _lock(path)]
    return _layer("locks", not noticed, "not seen by others", f"seen by others: {', '.join(noticed)}")


def _lock(path: str) -> bool:
    with open(path, "rb") as file:  # noqa: PTH123 - a device is no path to speak of
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _try_memory(jail: Jail) -> Layer:
    with _running(jail, _BOMB) as cell:
        _drain(cell)
        killed = cell.maybe_excess() is Kind.KILLED_MEMORY
    return _layer("memory", killed, "a bomb is killed at its limit", "each process for itself only")


def _try_kill(jail: Jail) -> Layer:
    cell = jail.start(_PROBE_LIMITS)
    cell.control.sendall(frames.encode_code("f", "([], {})", _ENDLESS))
    cell.kill(Kind.KILLED_TIME)
    killed = cell.wait(_TIMEOUT_S).killed is Kind.KILLED_TIME
    return _layer("time", killed, "what does not end is killed", "it cannot be killed")


def _drain(cell: Cell) -> None:
    """Read until its streams end, or its time is up."""
    cell.control.settimeout(_TIMEOUT_S)
    try:
        while cell.control.recv(_REPLY_BYTES):
            pass
    except OSError:
        return


def _driver_pid(cell: Cell) -> int:
    children = Path(f"/proc/{cell.pid}/task/{cell.pid}/children").read_text().split()
    if len(children) != 1:
        raise SandboxError("the sandbox has no first process, or several")
    return int(children[0])


def _namespace(pid: int, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def _layer(name: str, effective: bool, how: str, instead: str) -> Layer:
    return Layer(name, effective, how if effective else instead)
