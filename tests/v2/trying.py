"""What the checks are made of: their table, the functions that they run, how one is watched, boxes.

Not the checks themselves; those are in checks.py."""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import runner

from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Kind, Outcome, judge
from bento_tor.sandbox import frames, images
from bento_tor.sandbox.cell import Cell
from bento_tor.sandbox.cgroups import PREFIX
from bento_tor.sandbox.hierarchies import Place, find_places
from bento_tor.sandbox.jail import Jail

TREE = Path("/sys/fs/cgroup")
IMAGES = Path("/opt/images")
DEADLINE_S = 120.0
ALL = frozenset({"memory", "pids", "cpu"})
FACTS = ("cgroup.procs", "cpu.max", "cpu.stat", "memory.events", "memory.high", "memory.max", "memory.oom.group")
FACTS += ("memory.swap.current", "memory.swap.max", "pids.events", "pids.max")
SMALL = Limits(memory_bytes=64 * MIB, pids=12, cpu_percent=100)

SLEEPER = ["/usr/bin/python3", "-ISc", "import signal; signal.pause()"]
# Waits until it is told, so that it is in its group before it takes anything.
HOG = ["/usr/bin/python3", "-ISc", "import os; os.read(0, 1); kept = [os.urandom(1 << 20) for _ in range(64)]"]
# Three processes that only wait, and one that takes all: oom.group must end them together.
BOMB = """
import os, signal
def f():
    for _ in range(3):
        if os.fork() == 0: signal.pause()
    kept = []
    while True: kept.append(os.urandom(1 << 20))
"""
FORKS = "import os, signal\ndef f():\n  while True:\n    if os.fork() == 0: signal.pause()"
# Two processes, each below what one process may use.
BUSY = "import os\ndef f():\n  os.fork()\n  while True: pass"
# Deaf to whatever can be caught.
DEAF = """
import os, signal
def f():
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP): signal.signal(number, signal.SIG_IGN)
    for _ in range(4):
        if os.fork() == 0: signal.pause()
    api.send("up")
    signal.pause()
"""


@dataclass
class Play:
    """What came of one function, and what its cgroup said when it had ended."""

    outcome: Outcome
    messages: list[bytes]
    facts: dict[str, str]

    def counts(self, file: str) -> dict[str, int]:
        return {name: int(value) for name, value in (line.split() for line in self.facts[file].splitlines())}


@dataclass
class Here:
    """Where a group of checks runs. `group`: the cgroup that was given to us."""

    group: Path
    image: images.Image
    jail: Jail
    seen: list[str] = field(default_factory=list)

    def own(self) -> Path:
        """The jail's own directory."""
        (found,) = self.group.glob(f"{PREFIX}{os.getpid()}-*")
        return found

    def play(self, source: str, limits: Limits = SMALL, then: Limits | None = None) -> Play:
        """Run it to its end, looking at what it has used as the keeper does. `then`: other limits, once it is ready."""
        cell = self.jail.start(limits)
        leaf = self.own() / str(cell.pid)
        try:
            if then is not None:
                cell.change_limits(then)
            cell.control.sendall(frames.encode_code("f", "([], {})", source.encode()))
            watch_until_ended(cell)
            talk = runner.converse(cell.control, cell.log.fileno(), b"")
            facts = {name: (leaf / name).read_text().strip() for name in FACTS}
        finally:
            cell.kill(Kind.KILLED_OPERATOR)
            seen = cell.collect()
        expect(not leaf.exists(), "its cgroup is left")
        return Play(judge(talk.said, seen, ready=talk.ready), talk.messages, facts)


CHECKS: dict[str, list[Callable[[Here], object]]] = {
    group: [] for group in ("delegated", "root", "top", "shared", "undelegated")
}
GIVEN = ("delegated", "root", "top")
REFUSED = ("shared", "undelegated")


def check(*groups: str) -> Callable[[Callable[[Here], object]], Callable[[Here], object]]:
    def register(function: Callable[[Here], object]) -> Callable[[Here], object]:
        for group in groups:
            CHECKS[group].append(function)
        return function

    return register


def wanted() -> list[str]:
    """The names of all checks, in the form in which they are reported."""
    return [f"{group} {title(function)}" for group, functions in CHECKS.items() for function in functions]


def expect(truth: object, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        expect(time.monotonic() < deadline, f"{what}: not in {DEADLINE_S:.0f} s")
        time.sleep(0.02)


def watch_until_ended(cell: Cell) -> None:
    """What the keeper does: look at what has been used, and end what has used too much."""

    def over() -> bool:
        if (excess := cell.maybe_excess()) is not None:
            cell.kill(excess)
        return cell.ended

    wait_for(over, "the function ends")


def refusal(action: Callable[[], object]) -> str:
    """The name of the error that the kernel answers with, or `worked`."""
    try:
        action()
    except OSError as why:
        return errno.errorcode[why.errno or 0]
    return "worked"


def put(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def members(group: Path) -> list[str]:
    return (group / "cgroup.procs").read_text().split()


def places() -> list[Place]:
    return find_places(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())


def start_box(group: Path, *options: str) -> subprocess.Popen[str]:
    """The command that an operator runs, started inside `group`."""
    command = [sys.executable, "-sB", "-m", "bento_tor.cli", "serve", "--json"]
    state = f"/tmp/box-{os.getuid()}-{group.name}"
    return subprocess.Popen(
        [*command, "--state", state, "--images", str(IMAGES), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: _enter(group),
    )


def first_line(box: subprocess.Popen[str]) -> dict[str, object]:
    """What it says when it is up."""
    assert box.stdout is not None and box.stderr is not None
    if not select.select([box.stdout], [], [], DEADLINE_S)[0]:
        raise AssertionError("it does not come up")
    line = box.stdout.readline()
    if not line:
        raise AssertionError(f"it does not come up: {box.stderr.read()}")
    told = json.loads(line)
    expect(isinstance(told, dict), line)
    return dict(told)


def end_box(box: subprocess.Popen[str]) -> None:
    box.terminate()
    try:
        _, told = box.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        box.kill()
        raise
    expect(box.returncode == 0, f"exit status {box.returncode}: {told}")


def _enter(group: Path) -> None:
    if str(os.getpid()) not in members(group):
        put(group / "cgroup.procs", "0")


def alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def title(function: Callable[[Here], object]) -> str:
    return function.__name__.replace("_", " ")


def report(group: str, title: str, action: Callable[[], object]) -> bool:
    began = time.monotonic()
    try:
        told = action()
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc(file=sys.stdout)
        print(f"v2: failed {group} {title} [{' '.join(str(error).split())}]", flush=True)
        return False
    seconds = time.monotonic() - began
    detail = " ".join(str(told).split()) if told is not None else "as wanted"
    print(f"v2: ok {group} {title} [{detail}; {seconds:.1f} s]", flush=True)
    return True
