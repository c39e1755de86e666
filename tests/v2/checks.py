"""The checks that run in the guest, as a group of them has it: argument 1. Prints one line for each.

Each is the real code in a real cgroup v2. A check says what it saw, or raises. `machine.py` imports this file for the
list of what must have been run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import runner
from trying import (
    ALL,
    BOMB,
    BUSY,
    CHECKS,
    DEADLINE_S,
    DEAF,
    FORKS,
    GIVEN,
    HOG,
    IMAGES,
    REFUSED,
    SLEEPER,
    SMALL,
    TREE,
    Here,
    alive,
    check,
    end_box,
    expect,
    first_line,
    members,
    places,
    put,
    refusal,
    report,
    start_box,
    title,
    wait_for,
)

from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Kind
from bento_tor.sandbox import frames, images, layers, trial
from bento_tor.sandbox.cgroups import PREFIX, Cgroups
from bento_tor.sandbox.hierarchies import LEAF
from bento_tor.sandbox.jail import Jail

# --- where the controllers are ours ---------------------------------------------------------------------------


@check(*GIVEN)
def the_chooser_takes_v2_for_every_controller(here: Here) -> object:
    found = {place.controller: (place.version, place.path) for place in places()}
    expect(found == dict.fromkeys(ALL, (2, here.group)), str(found))
    expect(here.jail.effective == ALL, f"effective: {sorted(here.jail.effective)}")
    expect(here.jail.counts_cpu, "processor seconds are not counted")
    return "memory pids cpu"


@check("delegated", "root")
def we_are_in_a_leaf_and_the_group_is_empty(here: Here) -> object:
    own = Path("/proc/self/cgroup").read_text().strip()
    expect(own.endswith(f"/{here.group.name}/{LEAF}"), own)
    expect(members(here.group) == [], f"still there: {members(here.group)}")
    return own


@check(*GIVEN)
def a_process_that_was_forked_before_came_along(here: Here) -> object:
    """As the box and the broker, which are forked before there is a jail."""
    expect(str(EARLIER.pid) in members(here.group / LEAF if here.group != TREE else TREE), "it is elsewhere")
    return None


@check("delegated", "root")
def a_second_jail_finds_the_same_place(here: Here) -> object:
    with Jail(here.image) as second:
        expect(second.effective == ALL, f"effective: {sorted(second.effective)}")
    expect(not (here.group / LEAF / LEAF).exists(), "it made a leaf in the leaf")
    return None


@check(*GIVEN)
def a_function_returns(here: Here) -> object:
    trial.check(here.jail)
    played = here.play("def f(): return 17")
    expect((played.outcome.word, played.messages) == ("returned", [b"17"]), str(played.outcome))
    return played.outcome.word


@check("delegated", "root")
def its_limits_are_those_that_were_asked_for(here: Here) -> object:
    told = here.play("def f(): pass", Limits(memory_bytes=64 * MIB, pids=9, cpu_percent=25)).facts
    names = ("memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    found = {name: told[name] for name in names}
    expect(list(found.values()) == [str(64 * MIB), "max", "0", "1", "10", "25000 100000"], str(found))
    return found


@check("delegated", "root")
def a_memory_bomb_ends_all_its_processes(here: Here) -> object:
    played = here.play(BOMB)
    expect(played.outcome.word == "killed:memory", f"{played.outcome}")
    events = played.counts("memory.events")
    expect(events["oom_group_kill"] == 1, f"no group kill: {events}")
    # Not always all five: once the namespace's first is hit, the others go with it.
    expect(events["oom_kill"] >= 2, f"one only: {events}")
    expect(played.facts["cgroup.procs"] == "", "a process outlived it")
    return f"{events['oom_kill']} killed at {played.facts['memory.max']} bytes"


@check("delegated", "root")
def its_memory_is_not_swapped(here: Here) -> object:
    """There is swap space here, and a cgroup that may uses it; ours is killed instead."""
    expect(len(Path("/proc/swaps").read_text().splitlines()) == 2, "this machine has no swap")
    expect(here.jail.denies_swap, "the jail says that it may be swapped")
    used = here.play(BOMB).facts["memory.swap.current"]
    expect(used == "0", f"{used} bytes were swapped")
    return None


@check("root")
def other_memory_is_swapped(here: Here) -> object:
    """The counter-check of the one before: the swap space is real."""
    group = here.group / "swapping"
    group.mkdir()
    put(group / "memory.max", str(24 * MIB))
    source = "kept = bytearray(b'x') * (40 << 20); import signal; signal.pause()"
    enter = partial(put, group / "cgroup.procs", "0")
    with subprocess.Popen(["/usr/bin/python3", "-ISc", source], preexec_fn=enter) as process:
        try:
            wait_for(lambda: int((group / "memory.swap.current").read_text()) > 8 * MIB, "it is swapped")
            return f"{(group / 'memory.swap.current').read_text().strip()} bytes"
        finally:
            process.kill()
            process.wait()
            group.rmdir()


@check(*GIVEN)
def memory_that_runs_out_ends_the_whole_group(here: Here) -> object:
    """Of processes that have nothing else in common: no namespace dies with its first one here."""
    with_us = Cgroups.of_this_process()
    with_us.open()
    sleepers = [subprocess.Popen(SLEEPER) for _ in range(3)]
    hog = subprocess.Popen(HOG, stdin=subprocess.PIPE)
    try:
        group = with_us.create("hog", Limits(memory_bytes=32 * MIB))
        for process in (*sleepers, hog):
            group.add(process.pid)
        hog.communicate(b"go", DEADLINE_S)
        ends = {process.wait(DEADLINE_S) for process in (*sleepers, hog)}
        kills = group.oom_kills()
        expect(group.destroy(DEADLINE_S), "it is not gone")
    finally:
        for process in (*sleepers, hog):
            process.kill()
        with_us.close()
    expect(ends == {-signal.SIGKILL}, str(ends))
    # The one that the kernel chose is counted once more.
    expect(kills >= 4, f"{kills} were killed for memory")
    return f"{kills} killed"


@check(*GIVEN)
def a_fork_bomb_stops_at_its_limit(here: Here) -> object:
    """At the cgroup's, which is narrower than the rlimits of the ready sandbox that it got."""
    played = here.play(FORKS, then=Limits(memory_bytes=64 * MIB, pids=5))
    expect(played.outcome.word == "raised" and "BlockingIOError" in played.outcome.detail, str(played.outcome))
    expect(played.facts["pids.max"] == "6", played.facts["pids.max"])
    expect(played.counts("pids.events")["max"] >= 1, f"not by the cgroup: {played.facts['pids.events']}")
    return f"pids.events: {played.facts['pids.events']}"


@check("delegated", "root")
def a_share_of_the_processor_is_a_share(here: Here) -> object:
    began = time.monotonic()
    played = here.play(BUSY, Limits(memory_bytes=64 * MIB, pids=12, cpu_percent=20, cpu_s=1))
    took_s = time.monotonic() - began
    counted = played.counts("cpu.stat")
    expect(counted["nr_throttled"] > 0, f"never held back: {counted}")
    share = counted["usage_usec"] / 1e6 / took_s
    expect(share < 0.4, f"{share:.0%} of a core at 20%")
    return f"{share:.0%} of a core at 20%"


@check(*GIVEN)
def processor_seconds_are_counted_for_all_its_processes(here: Here) -> object:
    played = here.play(BUSY, Limits(memory_bytes=64 * MIB, pids=12, cpu_percent=200, cpu_s=2))
    expect(played.outcome.word == "killed:cpu", str(played.outcome))
    used_s = played.counts("cpu.stat")["usage_usec"] / 1e6
    expect(used_s > 2, f"after {used_s:.2f} s")
    return f"killed after {used_s:.2f} s of 2"


@check("delegated", "root")
def limits_of_a_running_function_can_be_changed(here: Here) -> object:
    """As for a ready sandbox when somebody gets it."""
    cell = here.jail.start(SMALL)
    leaf = here.own() / str(cell.pid)
    try:
        cell.change_limits(Limits(memory_bytes=48 * MIB, pids=5, cpu_percent=50))
        found = [(leaf / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
    finally:
        cell.kill(Kind.KILLED_OPERATOR)
        cell.collect()
    expect(found == [str(48 * MIB), "6", "50000 100000"], str(found))
    return None


@check("delegated", "root")
def what_is_deaf_is_killed(here: Here) -> object:
    cell = here.jail.start(SMALL)
    leaf = here.own() / str(cell.pid)
    try:
        cell.control.sendall(frames.encode_code("f", "([], {})", DEAF.encode()))
        wait_for(lambda: len(members(leaf)) >= 6, "it has all its processes")
        inside = members(leaf)
        cell.kill(Kind.KILLED_TIME)
        seen = cell.wait(DEADLINE_S)
    finally:
        with suppress(OSError):
            cell.kill(Kind.KILLED_OPERATOR)
    expect(seen.killed is Kind.KILLED_TIME, str(seen))
    expect(not leaf.exists(), "its cgroup is left")
    expect(not [pid for pid in inside if Path("/proc", pid).exists()], "a process is left")
    return f"{len(inside)} processes"


@check(*GIVEN)
def a_group_that_is_removed_takes_its_processes_along(here: Here) -> object:
    """cgroup.kill: whoever is in it ends, in whatever pid namespace."""
    with_us = Cgroups.of_this_process()
    with_us.open()
    sleepers = [subprocess.Popen(SLEEPER) for _ in range(3)]
    try:
        group = with_us.create("sleepers", SMALL)
        for sleeper in sleepers:
            group.add(sleeper.pid)
        expect(group.destroy(DEADLINE_S), "it is not gone")
        ends = {sleeper.wait(DEADLINE_S) for sleeper in sleepers}
    finally:
        for sleeper in sleepers:
            sleeper.kill()
        with_us.close()
    expect(ends == {-signal.SIGKILL}, str(ends))
    return "3 processes"


@check(*GIVEN)
def what_a_killed_keeper_left_is_swept(here: Here) -> object:
    read, write = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        with_us = Cgroups.of_this_process()
        with_us.open()
        group = with_us.create("left", SMALL)
        sleeper = subprocess.Popen(SLEEPER)
        group.add(sleeper.pid)
        os.write(write, str(sleeper.pid).encode())
        signal.pause()
    left = os.read(read, 16).decode()
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    expect(list(here.group.glob(f"{PREFIX}{keeper}-*")), "it had no cgroup")
    again = Cgroups.of_this_process()
    again.open()
    again.close()
    expect(not list(here.group.glob(f"{PREFIX}{keeper}-*")), "its cgroup is left")
    wait_for(lambda: not alive(left), "its process has ended")
    return None


@check("delegated")
def our_own_limits_are_not_ours_to_raise(here: Here) -> object:
    names = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    told = {name: refusal(partial(put, here.group / name, "max")) for name in names}
    expect(set(told.values()) == {"EACCES"}, str(told))
    return "EACCES"


@check("delegated")
def there_is_no_way_out_of_the_delegated_part(here: Here) -> object:
    """Upwards, and to a group beside ours."""
    (TREE / "bento.slice").stat()
    told = [refusal(partial(put, path / "cgroup.procs", str(os.getpid()))) for path in (here.group.parent, TREE)]
    expect(set(told) == {"EACCES"}, str(told))
    return "EACCES"


@check("delegated", "root")
def doctor_sees_every_layer_of_it(here: Here) -> object:
    found = {layer.name: layer for layer in layers.probe(here.jail)}
    weak = [layer for layer in found.values() if not layer.effective]
    names = {"memory", "pids", "cpu", "cpu-seconds", "swap", *layers.ESSENTIAL}
    expect(not [layer for layer in weak if layer.name in names], str(weak))
    return f"{len(found) - len(weak)} of {len(found)} hold"


@check("delegated", "root")
def a_whole_box_serves_with_all_limits(here: Here) -> object:
    """The keeper with its forked box in a service's cgroup of their own; its end leaves nothing there."""
    service = here.group / "box.service"
    service.mkdir()
    box = start_box(service)
    try:
        serving = first_line(box)
        expect(sorted(serving.get("limits", [])) == sorted(ALL), str(serving))
        expect(len(members(service / LEAF)) >= 2, "the keeper and its box are not in the leaf")
        expect(members(service) == [], "something is left in the group itself")
    finally:
        end_box(box)
    left = [str(path.relative_to(service)) for path in service.glob(f"**/{PREFIX}*")]
    expect(not left, f"left: {left}")
    (service / LEAF).rmdir()
    service.rmdir()
    return "limits: " + " ".join(sorted(ALL))


# --- where they are not ---------------------------------------------------------------------------------------


@check(*REFUSED)
def nothing_is_effective(here: Here) -> object:
    expect(here.jail.effective == frozenset(), f"effective: {sorted(here.jail.effective)}")
    expect(not here.jail.counts_cpu, "it claims to count processor seconds")
    expect(not here.jail.denies_swap, "it claims that nothing is swapped")
    return None


@check(*REFUSED)
def nothing_was_moved_or_made(here: Here) -> object:
    below = [path.name for path in here.group.iterdir() if path.is_dir()]
    expect(below == [], f"there is a group below ours: {below}")
    passed_on = (here.group / "cgroup.subtree_control").read_text().split()
    expect(passed_on == [], f"our group now passes on {passed_on}")
    expect(str(os.getpid()) in members(here.group), "we are elsewhere")
    return None


@check("undelegated")
def serve_refuses(here: Here) -> object:
    box = start_box(here.group)
    _, told = box.communicate(timeout=DEADLINE_S)
    expect(box.returncode == 1, f"exit status {box.returncode}: {told}")
    expect("this machine lets us set no cgroup limits for memory and pids" in told, told)
    expect("Delegate=yes" in told, f"the hint does not say how: {told}")
    expect("Traceback" not in told, told)
    return None


@check("undelegated")
def serve_with_rlimits_only_serves(here: Here) -> object:
    box = start_box(here.group, "--rlimits-only")
    try:
        serving = first_line(box)
        expect(serving.get("limits") == [], str(serving))
    finally:
        end_box(box)
    return None


@check(*REFUSED)
def a_function_returns_under_rlimits_alone(here: Here) -> object:
    trial.check(here.jail)
    talk = runner.run(here.jail, "def f():\n  kept = []\n  while True: kept.append(bytearray(1 << 20))", limits=SMALL)
    expect(talk.outcome.word == "raised" and "MemoryError" in talk.outcome.detail, str(talk.outcome))
    return None


def main(name: str) -> int:
    """Run the group `name`; exit status 0 if all is well."""
    text = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::")
    group = TREE / text.lstrip("/")
    image = images.load(IMAGES, "python")
    failed = False
    with Jail(image) as jail:
        here = Here(group, image, jail)
        for function in CHECKS[name]:
            failed |= not report(name, title(function), partial(function, here))
    with suppress(OSError):
        (group / LEAF).rmdir()
    return int(failed)


if __name__ == "__main__":
    EARLIER = subprocess.Popen(SLEEPER)
    try:
        status = main(sys.argv[1])
    finally:
        EARLIER.kill()
        EARLIER.wait()
    sys.exit(status)
