"""One image and one jail for all; after each test nothing of a sandbox may be left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from bento_tor.sandbox.jail import Jail

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def runner(load: Callable[[Path], ModuleType]) -> ModuleType:
    return load(HERE / "runner.py")


@pytest.fixture(scope="session")
def jail(image) -> Iterator[Jail]:
    with Jail(image) as jail:
        yield jail


@pytest.fixture
def run(runner, jail, nothing_left):
    return partial(runner.run, jail)


def own_cgroups() -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/bento-tor-{os.getpid()}-*"))


def children() -> set[psutil.Process]:
    """Our processes. Other tests of this run may have a box or a network up: what was there before is not ours."""
    return set(psutil.Process().children(recursive=True))


def leftovers(processes: set[psutil.Process], mounts: str, files: int) -> list[str]:
    found = [str(process) for process in children() - processes]
    found += [str(leaf) for group in own_cgroups() for leaf in group.iterdir() if leaf.is_dir()]
    if Path("/proc/self/mountinfo").read_text() != mounts:
        found.append("a mount")
    if (now := psutil.Process().num_fds()) > files:
        found.append(f"{now - files} descriptors")
    return found


@pytest.fixture
def nothing_left(jail) -> Iterator[None]:
    before = children(), Path("/proc/self/mountinfo").read_text(), psutil.Process().num_fds()
    yield
    deadline = time.monotonic() + 5
    while (found := leftovers(*before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found
