"""`setup-relay` on a tor of Debian's layout in a private network: from client to relay with a box, and back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bento_tor.client import connect, load
from bento_tor.controller.streams import check_reachable
from bento_tor.network import Network
from bento_tor.network.ports import allocate_ports

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]


def wait_listed(network: Network, fingerprint: str) -> str:
    """The consensus entry of that relay, as the network's client has it."""
    deadline = time.monotonic() + 120
    with network.connect(network.client) as tor:
        while not (reply := tor.msg(f"GETINFO ns/id/{fingerprint}")).ok:
            assert time.monotonic() < deadline, "the consensus does not list it"
            time.sleep(0.5)
    return reply.lines[0]


def test_a_client_becomes_a_relay_with_a_box_and_goes_back(
    own_network: Network, new_tor: Callable[..., Any], setup_relay: Any, running_box: Callable[[Path], Any]
) -> None:
    tor = new_tor(network=own_network)
    tor.start()
    state = tor.root / "state"
    before = tor.files()
    options = ("--nickname", "x", "--orport", "auto", "--yes")

    dry = setup_relay(tor.root, *options, "--dry-run")
    assert dry.status == 0 and "+Nickname x" in dry.stdout and "+%include" in dry.stdout, dry.stderr
    assert tor.files() == before and not state.exists()

    done = setup_relay(tor.root, *options, "--json")
    assert done.status == 0, done.stderr
    with tor.connect() as running:
        fingerprint = running.get_info("fingerprint")
        assert running.get_conf("Nickname") == ["x"] and running.get_conf("ExitRelay") == ["0"]
    assert wait_listed(own_network, fingerprint).splitlines()[1].startswith("r x ")

    box = running_box(state)
    try:
        assert (box.told["owner"], box.told["address"]) == ("relay", done.told["address"])
        check_reachable(own_network.client.socks, done.told["address"], 80, timeout_s=60)
        with connect(done.told["address"], socks=str(own_network.client.socks), timeout_s=60) as visit:
            assert list(visit.run(load("hello"))) == [b"hello world"]
            assert visit.policy_signed is True, "the relay's tor has a key that the box knows"
    finally:
        assert box.stop() == 0

    after = tor.files()
    again = setup_relay(tor.root, *options)
    assert again.status == 0 and "nothing to do" in again.stderr and done.told["address"] in again.stdout
    bare = setup_relay(tor.root, "--yes")
    assert "nothing to do" in bare.stderr, "what a run leaves unsaid stays"
    assert tor.files() == after

    assert setup_relay(tor.root, "--undo", "--yes").status == 0
    assert tor.files() == before and tor.alive
    with tor.connect() as running:
        assert not running.get_conf("ORPort") and not running.get_conf("HiddenServiceDir")


def test_a_tor_whose_files_are_elsewhere(
    tor_network: Network, new_tor: Callable[..., Any], bento: Callable[..., Any], running_box: Callable[..., Any]
) -> None:
    """By its control port alone: the address is told by the descriptor, because tor's folder is out of sight."""
    tor = new_tor(network=tor_network)
    tor.start()
    before, place = tor.files(), tor.root / "state"
    state = ["--control", str(tor.control), "--state", str(place), "--yes"]
    hidden = f"mount -t tmpfs none {tor.data}; exec {sys.executable} -m bento_tor.cli setup-relay"
    target = f"127.0.0.1:{allocate_ports(1)[0]}"
    script = f"{hidden} {' '.join(state)} --target {target} --json"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    address = json.loads(done.stdout)["address"]
    box = running_box(place, "--listen", target)
    try:
        check_reachable(tor_network.client.socks, address, 80, timeout_s=60)
        with connect(address, socks=str(tor_network.client.socks), timeout_s=60) as visit:
            assert list(visit.run(load("hello"))) == [b"hello world"]
    finally:
        assert box.stop() == 0
    assert "nothing to do" in bento("setup-relay", *state).stderr
    in_files = bento("setup-relay", "--root", str(tor.root), "--state", str(place), "--yes")
    assert in_files.returncode == 3 and "by the control port" in in_files.stderr
    assert bento("setup-relay", *state, "--undo").returncode == 0
    with tor.connect() as running:
        assert not running.get_conf("HiddenServiceDir")
    assert tor.files() == before, "nothing of it was ever in the files"
