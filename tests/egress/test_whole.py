"""Broker, keeper and box together, each a process of its own, with the kernel's rules loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox


def test_a_session_has_its_egress_from_its_grant_to_its_end(world):
    command = world.enter(sys.executable, "-I", str(Path(__file__).parent / "whole_main.py"))
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer
    page, port, inner = answer.stdout.splitlines()
    assert page == "/page at 93.184.216.34"
    assert "this box's policy does not allow it" in port
    assert "this box's policy does not allow it" in inner
    tables = subprocess.run(world.enter("nft", "list", "tables"), capture_output=True, text=True, check=True).stdout
    assert "bento_tor_egress_1880900002" not in tables
