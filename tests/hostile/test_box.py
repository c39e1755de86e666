"""Cases 53 to 58 and 60, against whole boxes. After each: a second client was answered all the time, nothing is left
behind, the box's memory and descriptors are back, and its audit has what it must."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from bento_tor.policy.limits import MIB
from bento_tor.server.operator import maybe_ask

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
ANSWER_S = 15.0
SPARE_BYTES = 16 * MIB
READY = 2
CONFIG = f"""
ready = {READY}
audit = true
[policy]
sessions = 6
output_bytes = 8388608
store_bytes = 1048576
kept_bytes = 1048576
[policy.limits]
wall_s = 60
memory_bytes = 67108864
"""
OWN_CONFIG = '[policy]\negress = ["exit"]\n[policy.limits]\nwall_s = 60\nmemory_bytes = 67108864\n'
# What others do besides: whoever has not been here is told the policy.
ORDINARY = {"end returned", "start pool", "start cold", "refusal policy", "refusal full", "limit connections"}


def load(name):
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CASES, LEFT = load("box_cases"), load("left")


def until(what, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def watched(running_box):
    """The box class, with what these tests look at."""

    class Watched(running_box):
        last_children: list[psutil.Process]

        def cgroups(self):
            return LEFT.cgroups_of(self.process.pid)

        def reader(self):
            self.last_children = self.children()
            return super().reader()

    return Watched


@pytest.fixture(scope="module")
def box(watched, lives, tmp_path_factory):
    running = watched(tmp_path_factory.mktemp("hostile") / "s", config=CONFIG)
    with running.connect() as there:
        there.run(CASES.ONCE).wait()
    # What many connections make it keep once is no leak.
    CASES.crowd(CASES.Stage(running, None, until, lives))
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words


@pytest.fixture
def stage(box, watched, lives, tmp_path):
    """The box, and a way to start others in one folder, one after another."""
    made = []

    def end_all():
        for running in made:
            if running.process.poll() is None:
                assert running.stop() == 0
            elif not running.log.closed:
                running.process.stdout.close()
                running.log.close()

    def own_box(settings):
        end_all()
        made.append(watched(tmp_path / "s", config=settings + OWN_CONFIG if "relay" in settings else settings))
        made[-1].last_children = made[-1].children()
        return made[-1]

    yield CASES.Stage(box, own_box, until, lives)
    end_all()
    assert not [path for running in made for path in running.cgroups()]


@contextmanager
def bystander(box) -> Iterator[list[float]]:
    """Another client, who comes and runs something again and again; how long each visit took, in seconds."""
    took, stop = [], threading.Event()

    def visit():
        while not stop.is_set():
            began = time.monotonic()
            with box.connect() as there:
                CASES._may_run(there)
                there.ping()
            took.append(time.monotonic() - began)
            stop.wait(0.1)

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join(60)
    assert took


def events(box, since=0):
    told = maybe_ask(box.state / "operator.sock", "audit", str(since))
    return told["events"]


def noted(box, since):
    """What the audit has that ordinary clients do not give it."""
    found = Counter(f"{event['kind']} {event['word']}" for event in events(box, since))
    return {name: count for name, count in found.items() if name not in ORDINARY}


def settle(what):
    """Wait for it; who asserts it afterwards can tell what is wrong."""
    with suppress(AssertionError):
        until(what, 20.0)


def state(box):
    reader = box.reader()
    files = sorted(path.name for path in box.state.rglob("*") if "-wal" not in path.name and "-shm" not in path.name)
    memory = reader.memory_info().rss
    return files, Path("/proc/self/mountinfo").read_text(), reader.num_fds(), memory


def differences(box, before):
    files, mounts, descriptors, memory = state(box)
    found = [] if files == before[0] else [f"files {set(files) ^ set(before[0])}"]
    found += [] if mounts == before[1] else ["a mount"]
    found += [] if descriptors <= before[2] else [f"{descriptors - before[2]} descriptors"]
    found += [] if memory <= before[3] * 1.05 + SPARE_BYTES else [f"{(memory - before[3]) // 1024} KiB"]
    if (now := box.sandboxes()) != READY:
        found.append(f"{now} sandboxes")
    leaves = {Path(leaf).name for group in box.cgroups() for leaf in LEFT.leaves(group)}
    return found + ([f"{len(leaves)} cgroups"] if len(leaves) > READY else [])


@pytest.mark.parametrize("case", CASES.CASES, ids=[f"{case.number} {case.name}" for case in CASES.CASES])
def test_a_hostile_client(stage, box, case, note):
    until(lambda: box.sandboxes() == READY)
    before = state(box)
    since = max((event["number"] for event in events(box)), default=0)
    with bystander(box) as took:
        outcome = case.play(stage)
    note("box", case.number, case.name, outcome)
    weak = case.weak and "memory" not in box.told["limits"]
    assert outcome in (case.weak if weak else case.expected).split("|")
    assert max(took) < ANSWER_S
    # A session that is killed ends a moment after whoever killed it was told.
    if case.events is not None and not weak:
        settle(lambda: noted(box, since) == case.events)
        assert noted(box, since) == case.events
    settle(lambda: not differences(box, before))
    assert differences(box, before) == []
    assert os.path.exists(box.address.removeprefix("unix:"))
