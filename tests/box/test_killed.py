"""A box killed at random moments of a workload: what it acknowledged is there, what it did not is whole or absent.

Five moments by default; fifty in `make soak`, which goes on where it was stopped.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest

from bento_tor.client import Box, Retries, parse
from bento_tor.client.source import Source, make_call
from bento_tor.errors import BentoError, Refused
from bento_tor.sandbox.cgroups import PREFIX

pytestmark = pytest.mark.sandbox

CONFIG = """
[policy]
sessions = 6
functions_per_connection = 1000
functions = 100000
[policy.limits]
wall_s = 20
memory_bytes = 67108864
"""
MARK = "a text that must not be on the disk"


@dataclass
class Tried:
    """One function that a client tried to store, and what it was told."""

    source: Source
    answer: bytes
    invocation: bytes = field(default_factory=lambda: os.urandom(32))
    shutdown: bytes = field(default_factory=lambda: os.urandom(32))
    session: bytes = field(default_factory=lambda: os.urandom(32))
    stored: bool = False
    started: bool = False
    ended: bool = False


def new_function() -> Tried:
    answer = os.urandom(8).hex()
    # Now and then one of many pages, so that a commit takes its time.
    filler = "#" + "x" * random.choice((10, 1000, 200_000)) + "\n"
    return Tried(parse("f", f"{filler}# {MARK}\ndef f(): return '{answer}'"), answer.encode())


def store(box: Box, tried: Tried) -> None:
    box.upload(tried.source, invocation=tried.invocation, shutdown=tried.shutdown)
    tried.stored = True


def run(box: Box, tried: Tried) -> None:
    """Start and read to the end."""
    session = box.start(tried.invocation, make_call("f"), session=tried.session)
    session.wait_attached()
    tried.started = True
    messages = list(session)
    tried.ended = session.wait().word == "returned"
    # Where the keeper was killed first, the box still says that the session is lost.
    assert messages == [tried.answer] if tried.ended else session.wait().word == "lost", session.wait().word


def work(connect: Callable[[], Box], tries: list[Tried]) -> None:
    """Upload and run until the box goes."""
    with suppress(BentoError, OSError), connect() as box:
        while True:
            tried = new_function()
            tries.append(tried)
            store(box, tried)
            if random.random() < 0.3:
                run(box, tried)


def cgroups_of(keeper: int) -> list[str]:
    """The groups that this keeper made, wherever the host keeps them."""
    return [
        name
        for _, children, _ in os.walk("/sys/fs/cgroup")
        for name in children
        if name.startswith(f"{PREFIX}{keeper}-")
    ]


def test_what_was_acknowledged_outlives_a_kill_at_any_moment(new_box, eventually, lives, rounds) -> None:
    tries: list[Tried] = []
    count = 0
    running = new_box(config=CONFIG)
    for _, moments in rounds(5, 50):
        count += 1
        mounts = Path("/proc/self/mountinfo").read_text()
        this_time: list[Tried] = []
        once = partial(running.connect, retries=Retries(most=0))
        workers = [threading.Thread(target=work, args=(once, this_time)) for _ in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(moments.uniform(0.0, 0.6))
        processes = [psutil.Process(running.process.pid), *running.children()]
        kill(running, moments)
        for worker in workers:
            worker.join(timeout=60)
            assert not worker.is_alive()
        eventually(lambda left=processes: not any(map(lives, left)))
        check_disk(running.state, [*tries, *this_time])
        running = new_box(config=CONFIG)
        # The next box takes away what a killed one could not.
        assert not cgroups_of(processes[0].pid)
        assert Path("/proc/self/mountinfo").read_text() == mounts
        check_functions(running, this_time)
        tries += this_time
    assert sum(tried.stored for tried in tries) > count, "the workload did not work"
    check_functions(running, [tried for tried in random.sample(tries, min(10, len(tries))) if tried.stored])
    assert running.stop() == 0
    check_disk(running.state, tries)


def kill(running, moments: random.Random) -> None:
    """Keeper first, box first, or both at once: as the machine would."""
    victim = running.process.pid
    with suppress(psutil.Error):
        box = running.reader()
        if moments.random() < 0.5:
            victim = box.pid
    os.kill(victim, signal.SIGKILL)
    running.process.wait(timeout=30)


def check_functions(running, tries: list[Tried]) -> None:
    """Every acknowledged one is there and runs; any other can be stored by its tokens, and then runs."""
    with running.connect() as box:
        for tried in tries:
            if tried.started:
                # Never a second time: either its end is known, or it is lost.
                session = box.attach(tried.session)
                assert session.wait().word in (("returned",) if tried.ended else ("returned", "lost"))
            if tried.stored:
                tried_again = box.function(tried.invocation).start(make_call("f"))
                assert list(tried_again) == [tried.answer]
            else:
                # Wholly there or wholly absent: either way the same tokens store it.
                store(box, tried)
            tried.session = os.urandom(32)
            tried.started = tried.ended = False
            if tried is tries[-1]:
                run(box, tried)
                tried.started = False
    with running.connect() as box, pytest.raises(Refused):
        box.attach(os.urandom(32)).wait()


def check_disk(state: Path, tries: list[Tried]) -> None:
    """No partial row, and neither text nor tokens in any file of the stopped box."""
    files = [path for path in state.rglob("*") if path.is_file()]
    data = b"".join(path.read_bytes() for path in files)
    secrets = [MARK.encode(), b"must not be on", *(tried.answer for tried in tries)]
    secrets += [token for tried in tries for token in (tried.invocation, tried.shutdown, tried.session)]
    for secret in secrets:
        assert secret not in data and secret.hex().encode() not in data
    # A copy: reading a database that was killed mends it, which is the next box's business.
    copy = state.parent / "copy"
    shutil.copytree(state / "box", copy)
    with closing(sqlite3.connect(copy / "box.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        partial = "SELECT count(*) FROM functions WHERE length(key_slot) != 60 OR length(body) < 28"
        assert database.execute(partial).fetchone() == (0,)
    shutil.rmtree(copy)
