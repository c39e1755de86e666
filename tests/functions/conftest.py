"""The jail of the sandbox's tests, and the functions that ship, as text."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from bento_tor import resources

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
def egress(load):
    """The functions of world_fixtures.py."""
    return load(Path(__file__).parent.parent / "egress" / "world_fixtures.py")


@pytest.fixture(scope="session")
def web(egress):
    """A machine and an internet of its own, whose web is site.py."""
    with egress.make_world(Path(__file__).parent / "site.py") as world:
        yield world


WEB_CONFIG = """
ready = 2
[policy]
images = ["python", "browser"]
egress = ["exit"]
[policy.limits]
wall_s = 120
memory_bytes = 268435456
pids = 128
data_bytes = 67108864
open_files = 256
"""


@pytest.fixture(scope="session")
def web_box(tor_network, egress, web, running_box, browser_image, tmp_path_factory):
    """A box on that machine, published."""
    state = tmp_path_factory.mktemp("web") / "s"
    with egress.publish_box(web, tor_network, running_box, state, WEB_CONFIG) as box:
        yield box
