"""Tors of Debian's layout, and a quick way to run `setup-relay` on them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit code, or minus the signal."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> dict[str, Any]:
        return json.loads(self.stdout)  # type: ignore[no-any-return]


class Runner:
    """`bento-tor setup-relay` with a root and a state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BENTO_TOR")}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "runner.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, root: Path, *arguments: str, state: Path | None = None, kill_at: int | None = None) -> Done:
        place = ["--root", str(root), "--state", str(state or root / "state")]
        files = {name: str(self.folder / name) for name in ("stdout", "stderr", "note")}
        (self.folder / "note").write_text("")
        order = {"arguments": ["setup-relay", *place, *arguments], "kill_at": kill_at, **files}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], 180)[0], (self.folder / "stderr").read_text()
        status = json.loads(self._process.stdout.readline())["status"]
        done = Done(status, *((self.folder / name).read_text() for name in ("stdout", "stderr")))
        assert "Traceback" not in done.stderr, done.stderr
        return done

    @property
    def note(self) -> str:
        """Before which step the last run was killed."""
        return (self.folder / "note").read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def setup_relay() -> Iterator[Runner]:
    """Run the command."""
    with tempfile.TemporaryDirectory(prefix="bento-t-") as folder:
        runner = Runner(Path(folder))
        yield runner
        runner.close()


@pytest.fixture(scope="session")
def layout(load: Callable[[Path], ModuleType]) -> ModuleType:
    """The module that makes the layout."""
    return load(HERE / "layout.py")


@pytest.fixture
def new_tor(layout: ModuleType) -> Iterator[Callable[..., Any]]:
    """Tors of a test's own, each below a prefix of its own, ended and removed after it."""
    with ExitStack() as stack:

        def make(*lines: str, **options: Any) -> Any:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bento-t-"))
            made = layout.DebianTor(Path(folder), *lines, **options)
            stack.callback(made.stop)
            return made

        yield make


@pytest.fixture(scope="module")
def idle_tor(layout: ModuleType) -> Iterator[Any]:
    """One that runs, alone, for tests that leave it as they found it."""
    with tempfile.TemporaryDirectory(prefix="bento-t-") as folder:
        made = layout.DebianTor(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def bento_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The same as a process of its own, to be sent signals."""
    started: list[subprocess.Popen[str]] = []

    def start(root: Path, *arguments: str, path: Path | None = None) -> subprocess.Popen[str]:
        place = ["--root", str(root), "--state", str(root / "state")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BENTO_TOR")}
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        command = [sys.executable, "-m", "bento_tor.cli", "setup-relay", *place, *arguments]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
