"""Metrics and `status` of a box whose tor comes and goes: a Debian-layout tor in the private network."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bento_tor.network import Network
from bento_tor.network.ports import allocate_ports

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]


@pytest.fixture
def free_port() -> int:
    """For metrics."""
    return allocate_ports(1)[0]


def read(port: int) -> dict[str, float]:
    """The metrics without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name.removeprefix("bento_tor_"): sample.value for sample in samples if not sample.labels}


def test_tor_is_seen_as_it_is_while_it_goes_and_comes_back(
    tor_network: Network,
    new_tor: Callable[..., Any],
    new_box: Callable[..., Any],
    bento: Callable[..., Any],
    free_port: int,
    eventually: Callable[..., None],
) -> None:
    tor = new_tor(network=tor_network)
    tor.start()
    config = f'metrics = "127.0.0.1:{free_port}"\n'
    box = new_box("--publish", "--control", str(tor.control), config=config)
    assert box.told, box.words()
    up = {"tor_up": 1, "tor_bootstrap_ratio": 1, "tor_circuits_up": 1, "onion_published": 1}
    eventually(lambda: up.items() <= read(free_port).items(), 30)
    assert "relay_listed" not in read(free_port), "it is no relay"
    done = bento("status", "--state", str(box.state))
    assert done.returncode == 0, done.stdout
    assert "the box's onion service has a descriptor there" in done.stdout and "100 % (done)" in done.stdout

    tor.stop()
    eventually(lambda: read(free_port)["tor_up"] == 0, 30)
    assert "onion_published" not in read(free_port)
    done = bento("status", "--state", str(box.state), "--json")
    assert done.returncode == 4
    told = json.loads(done.stdout)
    assert "nothing there" in told["tors"][0]["why"] and told["maybe_box"]["sessions"]["now"] == 0
    eventually(lambda: "is not published" in bento("status", "--state", str(box.state)).stdout, 30)

    tor.start()
    eventually(lambda: up.items() <= read(free_port).items(), 120)
    assert bento("status", "--state", str(box.state)).returncode == 0


def test_a_relay_is_seen_with_its_flags(tor_network: Network, bento: Callable[..., Any], tmp_path: Path) -> None:
    done = bento("status", "--state", str(tmp_path), "--control", str(tor_network.relays[0].control), "--json")
    assert done.returncode == 6, "no box runs"
    relay = json.loads(done.stdout)["tors"][0]["maybe_condition"]["maybe_relay"]
    assert relay["listed"] and {"Running", "Valid"} <= set(relay["flags"]) and relay["reachable"]
