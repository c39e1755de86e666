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
