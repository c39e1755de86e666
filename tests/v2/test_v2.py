"""What `make test-v2` says of its checks must not be good by mistake. The checks themselves are run by that."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def machine() -> ModuleType:
    spec = importlib.util.spec_from_file_location("v2_machine", HERE / "machine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_all_checks_as_wanted_are_good(machine: ModuleType) -> None:
    assert len(machine.wanted()) == len(set(machine.wanted())) >= 50
    assert machine.judge(dict.fromkeys(machine.wanted(), "ok")) == []


def test_a_check_that_failed_or_was_not_run_is_wrong(machine: ModuleType) -> None:
    first, second, *rest = machine.wanted()
    assert machine.judge({first: "failed no", **dict.fromkeys(rest, "ok")}) == [
        f"{first}: failed no",
        f"{second}: not run",
    ]
    assert len(machine.judge({})) == len(machine.wanted())


def test_a_machine_that_does_not_come_to_its_end_is_no_run(machine: ModuleType) -> None:
    told = [f"v2: ok {name} [seen]" for name in machine.wanted()]
    assert machine.read(["noise", *told, "v2: end"], lambda text: None) == dict.fromkeys(machine.wanted(), "ok")
    with pytest.raises(machine.NotRun):
        machine.read(told, lambda text: None)
