"""The jail: starts sandboxes. Nothing of a function's is ever run in another way.

As root each session gets a user id of its own, and bubblewrap itself runs under it: started by root it would
run the function as root. Call everything here from the main thread: a sandbox dies with the thread that
started it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox.bytecode import compile_driver
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.cgroups import Cgroups
from bento_tor.sandbox.doors import Door, Doors
from bento_tor.sandbox.images import Image
from bento_tor.sandbox.outer import Outer, can_overlay
from bento_tor.sandbox.plumbing import Plumbing
from bento_tor.sandbox.seccomp import compile_profile
from bento_tor.sandbox.spec import DRIVER, Fds, Spec, Stage
from bento_tor.sandbox.uids import FIRST_UID, Uids

_START_TIMEOUT_S = 10.0
_STACK_BYTES = 8 * 1024 * 1024
# The driver's own file is written below the limit of file sizes, too.
_MIN_FILE_BYTES = 1024 * 1024
# bubblewrap and the dynamic loader need these many themselves.
_MIN_FILES = 16
# Address space is not memory: an interpreter maps much that it never touches.
_UNTOUCHED_BYTES = 128 * 1024 * 1024
# bubblewrap outside the namespaces, and its first process inside.
_OWN_PROCESSES = 2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)


class Jail:
    """A place to start sandboxes of the given images in. Open it before use, in the process that will spawn them.

    `uids`: the host user ids for sessions (root only; default: a block that no other box here uses).
    `cgroups`: which limits hold for a session as a whole; default: what this process finds. `doors`: a directory of
    ours for the sockets through which sandboxes have egress; default: they have none. `gates`: another one, for those
    that lead to the gate to tor; `couriers`: a third, for those to the courier."""

    def __init__(
        self,
        *images: Image,
        uids: range | None = None,
        cgroups: Cgroups | None = None,
        doors: Path | None = None,
        gates: Path | None = None,
        couriers: Path | None = None,
    ) -> None:
        self.images = images
        self._uids = Uids(uids) if os.geteuid() == 0 else None
        self._cgroups = cgroups or Cgroups.of_this_process()
        self._doors = tuple(Doors(path) if path is not None else None for path in (doors, gates, couriers))
        self._drivers: list[bytes] = []
        self._filters: list[bytes] = []
        self._stage = Stage(overlay=False, devices=False)

    def open(self) -> None:
        """Take cgroups and user ids. Raises SandboxError."""
        self._drivers = [compile_driver(image, DRIVER) for image in self.images]
        self._stage = self._find_stage()
        locks = self._stage.overlay and self._stage.devices
        self._filters = [compile_profile(image.profile, locks=locks) for image in self.images]
        # A sandbox's first process is bubblewrap's child: when that ends, it shall be ours to reap, not
        # init's.
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for doors in self._doors:
            if doors is not None:
                doors.open()
        if self._uids is not None:
            self._uids.open()
        self._cgroups.open()
        self._refuse_browser()

    def close(self) -> None:
        """Give everything back. All cells have been collected by then."""
        self._cgroups.close()
        if self._uids is not None:
            self._uids.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def effective(self) -> frozenset[str]:
        """Which of `memory`, `pids`, `cpu` are limited for a session as a whole. The rest is rlimits only."""
        return self._cgroups.effective

    @property
    def counts_cpu(self) -> bool:
        """Whether processor seconds are counted for a session as a whole."""
        return self._cgroups.counts_cpu

    @property
    def denies_swap(self) -> bool:
        """Whether what a function has in memory stays there."""
        return self._cgroups.denies_swap

    def start(self, limits: Limits, *, image: int = 0) -> Cell:
        """Start an interpreter of the image with this place in our list, which waits for code.

        Its limits hold before it runs. Raises SandboxError."""
        uid = self._uids.take() if self._uids is not None else None
        made: list[Door | None] = []
        try:
            for doors in self._doors:
                made.append(doors.make(uid) if doors is not None else None)
            plumbing = Plumbing.open(self._drivers[image], self._filters[image])
            cell = self._spawn(self.images[image], plumbing, limits, uid, made)
        except BaseException:
            for door in made:
                if door is not None:
                    door.remove()
            self._give_back(uid)
            raise
        listeners = (door.listener if door is not None else None for door in made)
        cell.maybe_door, cell.maybe_gate, cell.maybe_courier = listeners
        for door in made:
            if door is not None:
                cell.when_gone(door.remove)
        cell.when_gone(partial(self._give_back, uid))
        self._release(cell, plumbing, limits, own_proc=bool(self.images[image].browser))
        return cell

    def _spawn(
        self, image: Image, plumbing: Plumbing, limits: Limits, uid: int | None, doors: list[Door | None]
    ) -> Cell:
        """bubblewrap, up to where its first process waits."""
        process = None
        try:
            process = self._run(image, plumbing, limits, uid, doors)
            plumbing.close_inner()
            pid = plumbing.read_pid(_START_TIMEOUT_S)
            return Cell(process=process, pid=pid, control=plumbing.control, log=plumbing.log, limits=limits)
        except BaseException as why:
            if process is not None:
                process.kill()
                process.wait()
            # Its first process may be gone before we can take hold of it.
            failure = plumbing.failure() if isinstance(why, OSError) else None
            plumbing.close()
            if failure is not None:
                raise failure from why
            raise

    def _release(self, cell: Cell, plumbing: Plumbing, limits: Limits, *, own_proc: bool) -> None:
        """Put the waiting process under its limits, then let it go on."""
        try:
            cell.join(self._cgroups.create(str(cell.pid), limits))
            if own_proc:
                cell.cut_down_proc(_START_TIMEOUT_S)
            if self._uids is None:
                _limit_processes(cell.pid, limits)
            plumbing.release.write(b"\n")
        except BaseException as why:
            # Its first process may end before we have hold of it, and bubblewrap itself a moment later.
            died = cell.ended or isinstance(why.__cause__, ProcessLookupError)
            # Before `release` is closed: that, too, lets the process go on.
            cell.kill(Kind.LOST)
            failure = plumbing.failure() if died or isinstance(why, OSError) else None
            cell.collect()
            if failure is not None:
                raise failure from why
            raise
        finally:
            plumbing.info.close()
            plumbing.release.close()

    def _run(
        self, image: Image, plumbing: Plumbing, limits: Limits, uid: int | None, doors: list[Door | None]
    ) -> subprocess.Popen[bytes]:
        fds = plumbing.fds()
        maybe_door, maybe_gate, maybe_courier = (str(door.path) if door is not None else None for door in doors)
        spec = Spec(image, limits, fds, maybe_door, self._stage, maybe_gate, maybe_courier)
        rlimits = self._rlimits(limits, private_uid=uid is not None)
        try:
            return subprocess.Popen(
                spec.argv(),
                env={},  # the keeper's environment is none of the function's business
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=plumbing.inner_log,
                stderr=plumbing.inner_log,
                pass_fds=fds.all(),
                start_new_session=True,  # a Ctrl-C at the operator's terminal is for the keeper alone
                preexec_fn=partial(_become_session, self._outer(spec, uid), rlimits, functions_cpus(), os.getpid()),
            )
        except FileNotFoundError as why:
            raise SandboxError("bubblewrap is not installed", hint="install the package bubblewrap") from why
        except subprocess.SubprocessError as why:
            raise plumbing.failure() from why
        except OSError as why:
            raise SandboxError(f"bubblewrap cannot be started: {why}") from why

    def _refuse_browser(self) -> None:
        """Chromium reserves more address space than any limit of ours would leave it. Raises SandboxError."""
        if "memory" not in self.effective and (names := [image.name for image in self.images if image.browser]):
            self.close()
            raise SandboxError(
                f"the image {names[0]} needs a cgroup that limits memory, which this machine lets us not have",
                hint="see docs/operator.md for cgroups, or leave the image out of the policy",
            )

    def _find_stage(self) -> Stage:
        """What the outer step can do here. Without root it can make no device nodes: then locks are denied instead."""
        if self._uids is None:
            return Stage(overlay=False, devices=False)
        full = Spec(self.images[0], Limits(), Fds(0, 0, 0, 0, 0))
        return Stage(overlay=can_overlay(self._outer(full, FIRST_UID)))

    def _outer(self, spec: Spec, uid: int | None) -> Outer:
        lowers = spec.stage.lowers(spec.image)
        if not Path(lowers.get("certs", "/")).is_dir():
            del lowers["certs"]  # a machine without: functions have those of the image's packages
        return Outer(spec.stage, uid, spec.data_bytes, max(1, spec.limits.data_inodes), lowers)

    def _rlimits(self, limits: Limits, *, private_uid: bool) -> dict[int, int]:
        rlimits = {
            resource.RLIMIT_CORE: 0,
            # Of each process; of all together the cgroup counts. A little later than the count, which has the word.
            resource.RLIMIT_CPU: limits.cpu_s + 2,
            resource.RLIMIT_FSIZE: max(limits.data_bytes, _MIN_FILE_BYTES),
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NOFILE: max(limits.open_files, _MIN_FILES),
            resource.RLIMIT_RTPRIO: 0,
            resource.RLIMIT_STACK: _STACK_BYTES,
        }
        if private_uid:
            rlimits[resource.RLIMIT_NPROC] = limits.pids + _OWN_PROCESSES
        if "memory" not in self.effective:
            rlimits[resource.RLIMIT_AS] = limits.memory_bytes + _UNTOUCHED_BYTES
        return rlimits

    def _give_back(self, uid: int | None) -> None:
        if uid is not None and self._uids is not None:
            self._uids.give_back(uid)


def functions_cpus() -> frozenset[int]:
    """The processors for functions: all of ours but the first, which is left to tor, where there is more than one."""
    ours = sorted(os.sched_getaffinity(0))
    return frozenset(ours[1:] or ours)


def _become_session(outer: Outer, rlimits: dict[int, int], cpus: frozenset[int], keeper_pid: int) -> None:
    """In the child, between fork and exec: mounts, then the session's user, then its limits."""
    try:
        outer.arrange()
        if (uid := outer.maybe_uid) is not None:
            # Never host user id 0: bubblewrap itself runs as the session's user, with no group but its own.
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        os.sched_setaffinity(0, cpus)
        _limit_self(rlimits)
        # bubblewrap does it, too; until then a keeper that is killed would leave this process behind.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper_pid:
            os._exit(1)
    except OSError as why:
        # Only this way does the reason get out: subprocess tells its parent no more than that there is one.
        os.write(2, f"{why.strerror}{f': {why.filename}' if why.filename else ''}".encode())
        raise


def _limit_self(rlimits: dict[int, int]) -> None:
    """From inside: root without CAP_SYS_RESOURCE could not do it from outside."""
    for which, value in rlimits.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # SIGXCPU first, which tells why; SIGKILL a second later to who does not listen.
        soft = value - 1 if which == resource.RLIMIT_CPU else value
        resource.setrlimit(which, (soft, value))


def _limit_processes(pid: int, limits: Limits) -> None:
    """Rootless: the user has processes of his own, so only those in the sandbox's user namespace may be
    counted: bubblewrap itself is outside of it."""
    value = limits.pids + _OWN_PROCESSES - 1
    resource.prlimit(pid, resource.RLIMIT_NPROC, (value, value))
