"""Chromium in the real jail, behind a real broker, with a web site of its own in a namespace without a way out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bento_tor import resources
from bento_tor.policy.limits import NEEDS

HERE = Path(__file__).parent
LIMITS = msgspec.structs.replace(NEEDS["browser"], wall_s=60)


@pytest.fixture(scope="session")
def inside(load):
    return load(HERE.parent / "egress" / "inside_fixtures.py")


@pytest.fixture(scope="session")
def browser_jail(inside) -> Iterator:
    with inside.open_jail("browser") as jail:
        yield jail


@pytest.fixture(scope="session")
def egress(load):
    return load(HERE.parent / "egress" / "world_fixtures.py")


@pytest.fixture(scope="session")
def web(egress) -> Iterator:
    with egress.make_world(HERE / "site.py") as world:
        yield world


@pytest.fixture(scope="session")
def broker(egress, web) -> Iterator:
    with egress.start_broker(web) as broker:
        yield broker


@pytest.fixture
def render(inside, browser_jail, broker):
    """Run functions/browser.py: what it tells of the page, and the document."""
    source = resources.read_text("functions", "browser.py")

    def run(url: str, kind: str = "png", timeout: float = 20, *, hosts=(), flag: str = "", **options):
        """`hosts`: as in a manifest; `flag`: one more for Chromium."""
        text = source.replace('"--mute-audio"', f'"--mute-audio", {flag!r}') if flag else source
        assert not flag or text != source
        arguments = repr(([url], {"render": kind, "timeout": timeout} | options))
        talk = inside.run_inside(browser_jail, broker, text, "browser", arguments, limits=LIMITS, hosts=hosts)
        assert talk.outcome.word == "returned", talk
        line, _, document = zlib.decompress(talk.messages[0]).partition(b"\n")
        return json.loads(line), document

    return run
