"""A real box in its own processes, reached over its unix socket: everything but Tor."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bento_tor.client import Box, connect

# Sandboxes that wait ready in a box that runs nothing.
READY = 2
CONFIG = f"""
ready = {READY}
[policy]
host_stats = "full"
sessions = 6
[policy.limits]
wall_s = 20
memory_bytes = 67108864
"""


def name_of(process: psutil.Process) -> str:
    """Its name; empty where it ended since it was listed."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


class RunningBox:
    """`bento-tor serve` as a user starts it."""

    def __init__(self, state: Path, *options: str, config: str = CONFIG) -> None:
        self.state = state
        self.address = f"unix:{state}/box.sock"
        (state.parent / "box.toml").write_text(config)
        self.log = (state.parent / "log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bento_tor.cli", "serve", "--state", str(state), "--json"]
            + ["--config", str(state.parent / "box.toml"), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        assert poll.poll(60_000), self.words()
        line = self.process.stdout.readline()
        self.told = json.loads(line) if line else {}

    def words(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def connect(self, **options: object) -> Box:
        return connect(self.address, timeout_s=30, **options)  # type: ignore[arg-type]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def reader(self) -> psutil.Process:
        """The process that reads from clients: the oldest child that is no sandbox. (Numbers wrap round.)"""
        found = [child for child in psutil.Process(self.process.pid).children() if name_of(child) not in ("bwrap", "")]
        return min(found, key=lambda child: child.create_time())

    def sandboxes(self) -> int:
        """How many run or wait ready."""
        return sum(name_of(child) == "bwrap" for child in psutil.Process(self.process.pid).children())

    def kill(self) -> None:
        """As the machine would: no time to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return status


@pytest.fixture
def ready_sandboxes() -> int:
    """How many sandboxes a box has that runs nothing."""
    return READY


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    """One box for the tests that do not end it."""
    running = RunningBox(tmp_path_factory.mktemp("box") / "s")
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words


@pytest.fixture
def new_box(tmp_path: Path) -> Iterator[Callable[..., RunningBox]]:
    """Boxes of a test's own."""
    made: list[RunningBox] = []

    def make(*options: str, **more: str) -> RunningBox:
        made.append(RunningBox(tmp_path / "s", *options, **more))
        return made[-1]

    yield make
    for running in made:
        if running.process.poll() is None:
            running.stop()
        elif running.process.stdout is not None:
            running.process.stdout.close()
            running.log.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Poll until it is so."""

    def wait(what: Callable[[], object], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, "it did not come to be"
            time.sleep(0.05)

    return wait


@pytest.fixture
def bento(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, with a keyring of the test's own."""

    def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BENTO_TOR")}
        environment |= {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json"), **more}
        done = subprocess.run(
            [sys.executable, "-m", "bento_tor.cli", *arguments],
            input=stdin, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
