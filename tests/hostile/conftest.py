"""The hostile table: what its rows share, and the table that is printed at the end, a line for each case."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bento_tor.sandbox import images

HERE = Path(__file__).parent
_PLAYED = pytest.StashKey[list[tuple[str, str, str]]]()


def load(path: Path) -> ModuleType:
    """A module beside the tests, which no package holds."""
    spec = importlib.util.spec_from_file_location(f"hostile_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runner() -> ModuleType:
    return load(HERE.parent / "sandbox" / "runner.py")


@pytest.fixture(scope="session")
def image() -> images.Image:
    return images.build("python", images.default_dir(), lambda text: None)


@pytest.fixture
def note(request):
    """Keep a line for the table: how it was run, the case, what came of it."""
    lines = request.config.stash.setdefault(_PLAYED, [])
    return lambda how, case, outcome: lines.append((how, case, outcome))


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(_PLAYED, [])
    if lines:
        terminalreporter.section("hostile cases")
    for how, case, outcome in lines:
        terminalreporter.write_line(f"{how:9} {case:45} {outcome}")
