"""Two boxes, and functions that go from one to the other: through a real network, or by a SOCKS port of the tests'."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bento_tor.client import parse
from bento_tor.controller.streams import check_reachable

HERE = Path(__file__).parent
HEAD = "# /// script\n# [tool.bento]\n# box = true\n{}# ///\n"


def settings(
    socks: object, policy: str = "boxes = 2", *, wall_s: int = 120, number: int = 0, egress: str = "tor"
) -> str:
    """Of a box, with these lines in its policy. `number`: two boxes of one machine have user ids of their own; and
    no other test has these, for the boxes live as long as the run."""
    return f"""
socks = "{socks}"
first_uid = {1_860_000_000 + 1_000_000 * number}
ready = 1
[policy]
egress = ["{egress}"]
store_bytes = 20000000
sessions = 8
{policy}
[policy.limits]
wall_s = {wall_s}
memory_bytes = 134217728
"""


@pytest.fixture(scope="session")
def asking() -> Callable[..., Any]:
    """A function that may use other boxes; `more`: lines of its manifest."""
    return lambda text, more="": parse("f", HEAD.format(more) + text)


@pytest.fixture(scope="session")
def pair(running_box, tor_network, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """Two published boxes: one whose functions use others, and another one."""
    options = ("--publish", "--control", str(tor_network.client.control))
    socks = tor_network.client.socks
    boxes = []
    try:
        for number, name in enumerate(("here", "there")):
            state = tmp_path_factory.mktemp(name) / "s"
            boxes.append(running_box(state, *options, config=settings(socks, number=number)))
        for box in boxes:
            check_reachable(socks, box.told["address"], 80, timeout_s=90)
        yield boxes[0], boxes[1]
    finally:
        _stop(boxes)


@pytest.fixture(scope="session")
def outside(load, running_box, tor_network, tmp_path_factory) -> Iterator[tuple[Any, Path]]:
    """A box whose functions go straight out, on a machine of its own, and the directory where the web there, site.py,
    is told what to do. Its tor is on another machine's loopback: it has that as a socket in the file system."""
    egress = load(HERE.parent / "egress" / "world_fixtures.py")
    socks, state = tor_network.client.socks, tmp_path_factory.mktemp("outside") / "s"
    with egress.make_world(HERE / "site.py") as world, tempfile.TemporaryDirectory(prefix="bento-t-") as folder:
        path = Path(folder) / "socks"
        tap = load(HERE.parent / "tap.py").Tap((socks.host, socks.port), path)
        # The courier has a user id of its own.
        Path(folder).chmod(0o711)
        path.chmod(0o666)
        try:
            config = settings(f"unix:{path}", number=90, egress="exit")
            with egress.publish_box(world, tor_network, running_box, state, config) as box:
                yield box, world.directory
        finally:
            tap.close()


@pytest.fixture(scope="session")
def switch(load) -> Iterator[Any]:
    """Where the boxes below find other boxes."""
    made = load(HERE / "switch.py").Switch()
    yield made
    made.close()


@pytest.fixture(scope="session")
def new_near(running_box, switch, tmp_path_factory) -> Iterator[Callable[..., Any]]:
    """Boxes whose functions use others by the switch; other boxes' functions find them by it too."""
    boxes: list[Any] = []

    def make(policy: str = "boxes = 2", **more: int) -> Any:
        state = tmp_path_factory.mktemp("near") / "s"
        boxes.append(running_box(state, config=settings(switch.address, policy, number=2 + len(boxes), **more)))
        switch.lead(boxes[-1].told["address"], f"{state}/box.sock")
        return boxes[-1]

    yield make
    _stop(boxes)


@pytest.fixture(scope="session")
def near(new_near) -> Any:
    """Such a box, for the tests that do not end it."""
    return new_near()


@pytest.fixture(scope="session")
def far(new_near) -> Any:
    """Another one."""
    return new_near()


def _stop(boxes: list[Any]) -> None:
    for box in boxes:
        words = box.words()
        if box.process.poll() is None:
            assert box.stop() == 0
        else:  # a test has killed it
            box.process.stdout.close()
            box.log.close()
        assert "Traceback" not in words, words
