"""The jail of the sandbox's tests, and the functions that ship, as text."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from bento_tor import resources
from bento_tor.controller.streams import check_reachable

_spec = importlib.util.spec_from_file_location(
    "sandbox_conftest", Path(__file__).parent.parent / "sandbox" / "conftest.py"
)
_sandbox = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _sandbox
_spec.loader.exec_module(_sandbox)

runner, jail, nothing_left, run = _sandbox.runner, _sandbox.jail, _sandbox.nothing_left, _sandbox.run


@pytest.fixture
def source():
    """The text of a shipped function."""
    return lambda name: resources.read_text("functions", f"{name}.py")


@pytest.fixture(scope="session")
def web(load):
    """A machine and an internet of its own, whose web is site.py."""
    with load(Path(__file__).parent.parent / "egress" / "world_fixtures.py").make_world(
        Path(__file__).parent / "site.py"
    ) as world:
        yield world


@pytest.fixture(scope="session")
def web_box(tor_network, web, running_box, tmp_path_factory):
    """A box on that machine, beside a relay that exits, published."""
    exit_, client = tor_network.exits[0], tor_network.client
    config = f"""
relay = "{exit_.control}"
ready = 2
[policy]
egress = ["exit"]
[policy.limits]
wall_s = 120
memory_bytes = 134217728
"""
    state = tmp_path_factory.mktemp("web") / "s"
    running = running_box(state, "--publish", "--control", str(client.control), config=config, within=web.enter)
    try:
        check_reachable(client.socks, running.told["address"], 80, timeout_s=60)
        yield running
    finally:
        words = running.words()
        assert running.stop() == 0, words
