"""Chromium in the real jail, behind a real broker, with a web site of its own in a namespace without a way out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bento_tor import resources
from bento_tor.policy.limits import MIB, Limits

HERE = Path(__file__).parent
LIMITS = Limits(memory_bytes=512 * MIB, pids=128, data_bytes=64 * MIB, open_files=256, wall_s=60, cpu_s=60)


@pytest.fixture(scope="session")
def inside(load):
    return load(HERE.parent / "egress" / "inside_fixtures.py")


@pytest.fixture(scope="session")
def browser_jail(inside) -> Iterator:
    with inside.open_jail("browser") as jail:
        yield jail


@pytest.fixture(scope="session")
def broker(load) -> Iterator:
    egress = load(HERE.parent / "egress" / "world_fixtures.py")
    with egress.make_world(HERE / "site.py") as world, egress.start_broker(world) as broker:
        yield broker


@pytest.fixture
def render(inside, browser_jail, broker):
    """Run functions/browser.py: what it tells of the page, and the document."""
    source = resources.read_text("functions", "browser.py")

    def run(url: str, kind: str = "png", timeout: float = 20, **options):
        arguments = repr(([url], {"render": kind, "timeout": timeout} | options))
        talk = inside.run_inside(browser_jail, broker, source, "browser", arguments, limits=LIMITS)
        assert talk.outcome.word == "returned", talk
        line, _, document = zlib.decompress(talk.messages[0]).partition(b"\n")
        return json.loads(line), document

    return run
