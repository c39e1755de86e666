"""One world for all tests of egress; a broker for each."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"egress_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SHARED = load("world_fixtures")


@pytest.fixture(scope="session")
def egress() -> ModuleType:
    """The functions of world_fixtures.py."""
    return SHARED


@pytest.fixture(params=SHARED.NEVER)
def never_host(request) -> str:
    """Each spelling of what must never be reached."""
    return request.param


@pytest.fixture(scope="session")
def world(egress) -> Iterator:
    with egress.make_world() as world:
        yield world


@pytest.fixture
def broker(egress, world) -> Iterator:
    """One that lets everything out that is not on the never-list."""
    with egress.start_broker(world) as broker:
        yield broker


@pytest.fixture(scope="session")
def inside() -> ModuleType:
    """The functions of inside_fixtures.py."""
    return load("inside_fixtures")


@pytest.fixture(scope="session")
def door_jail(inside) -> Iterator:
    """A jail whose sandboxes have doors."""
    with inside.open_jail() as jail:
        yield jail
