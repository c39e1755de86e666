"""Two published boxes of one real network, and functions that go from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bento_tor.client import parse
from bento_tor.controller.streams import check_reachable

HEAD = "# /// script\n# [tool.bento]\n# box = true\n{}# ///\n"


@pytest.fixture(scope="session")
def settings(tor_network) -> Callable[..., str]:
    """The settings of a box, with these lines in its policy."""

    def make(policy: str = "boxes = 2", *, wall_s: int = 120, number: int = 0) -> str:
        return f"""
first_uid = {1_880_000_000 + 1_000_000 * number}
socks = "{tor_network.client.socks}"
ready = 1
[policy]
egress = ["tor"]
store_bytes = 20000000
sessions = 8
{policy}
[policy.limits]
wall_s = {wall_s}
memory_bytes = 134217728
"""

    return make


@pytest.fixture(scope="session")
def asking() -> Callable[..., Any]:
    """A function that may use other boxes."""
    return lambda text, more="": parse("f", HEAD.format(more) + text)


@pytest.fixture(scope="session")
def pair(running_box, tor_network, settings, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """A box whose functions may use others, and another one."""
    options = ("--publish", "--control", str(tor_network.client.control))
    boxes = []
    try:
        for number, name in enumerate(("here", "there")):
            state = tmp_path_factory.mktemp(name) / "s"
            boxes.append(running_box(state, *options, config=settings(number=number)))
        for box in boxes:
            check_reachable(tor_network.client.socks, box.told["address"], 80, timeout_s=90)
        yield boxes[0], boxes[1]
    finally:
        for box in boxes:
            words = box.words()
            assert box.stop() == 0
            assert "Traceback" not in words, words
