"""Boxes over real circuits: published by us, put up by a relay, gone, and never there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bento_tor.client import connect, load, parse
from bento_tor.client.source import make_call
from bento_tor.controller.onion import onion_address
from bento_tor.controller.policy import exit_policy
from bento_tor.controller.streams import check_reachable
from bento_tor.network import Network
from bento_tor.policy.exit_policy import accepts
from bento_tor.policy.exit_policy import parse as parse_policy

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

Bento = Callable[..., CompletedProcess[str]]


def settings(network: Network) -> str:
    """All that setup-relay may touch, as the relay's tor tells it."""
    with network.connect(network.relays[0]) as tor:
        keys = ("HiddenServiceOptions", "ExitRelay", "ExitPolicy")
        return "\n".join("\n".join(tor.ask(f"GETCONF {key}").lines) for key in keys)


def test_a_box_that_publishes_itself_keeps_its_address_after_kill_9(
    tor_network: Network, new_box, bento: Bento
) -> None:
    options = ["--publish", "--control", str(tor_network.client.control)]
    first = new_box(*options)
    address, socks = first.told["address"], tor_network.client.socks
    assert first.told["owner"] == "box"
    check_reachable(socks, address, 80, timeout_s=60)
    with connect(address, socks=str(socks), timeout_s=60) as box:
        function = box.upload(load("add"))
        assert list(function.start(make_call("add", 5, 12))) == [b"17"]
    first.kill()
    second = new_box(*options)
    assert second.told["address"] == address
    # As one who has not been here: with the old descriptor tor asks the old introduction points first, for a while.
    with tor_network.connect(tor_network.client) as tor:
        tor.ask("SIGNAL NEWNYM")
    check_reachable(socks, address, 80, timeout_s=60)
    with connect(address, socks=str(socks), timeout_s=60) as box:
        assert list(box.function(function.invocation).start(make_call("add", 5, 12))) == [b"17"]
    network = ["--network", str(tor_network.directory)]
    done = bento("-q", "client", "run", "echo", "--box", address, *network, stdin="one\ntwo\nstop\n")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr


def test_many_megabytes_over_an_onion_arrive_whole(tor_network: Network, new_box) -> None:
    """Twenty; a hundred in `make soak`."""
    count = 100 if os.environ.get("BENTO_TOR_SOAK") else 20
    running = new_box("--publish", "--control", str(tor_network.client.control), config="[policy.limits]\nwall_s = 300")
    flood = parse("f", f"def f():\n    for n in range({count}): api.send(bytes([n]) * 10**6)")
    socks = str(tor_network.client.socks)
    check_reachable(tor_network.client.socks, running.told["address"], 80, timeout_s=60)
    with connect(running.told["address"], socks=socks, timeout_s=60) as box:
        box.policy()
        assert box.policy_signed is True, "the address itself vouches for the policy"
        session = box.run(flood)
        for number in range(count):
            assert session.maybe_receive() == bytes([number]) * 10**6
        assert session.wait().word == "returned"


def test_an_address_that_does_not_exist_is_said_with_its_code(tor_network: Network, bento: Bento) -> None:
    nobody = onion_address(os.urandom(32))
    done = bento("client", "run", "hello", "--box", nobody, "--network", str(tor_network.directory))
    assert (done.returncode, done.stdout) == (6, "")
    assert f"{nobody} is not published" in done.stderr and "hint:" in done.stderr


def test_a_box_that_is_down_is_said_with_its_code(tor_network: Network, short_path: Path, bento: Bento) -> None:
    """The relay's onion service is there, and the box behind it is not."""
    state = short_path / "s"
    relay = ["--control", str(tor_network.relays[1].control), "--state", str(state), "--yes"]
    told = json.loads(bento("setup-relay", *relay, "--json").stdout)
    try:
        done = bento("client", "run", "hello", "--box", told["address"], "--network", str(tor_network.directory))
        assert done.returncode == 6 and "box" in done.stderr and "hint:" in done.stderr, done.stderr
    finally:
        assert bento("setup-relay", *relay, "--undo").returncode == 0


def test_setup_relay_shows_does_repeats_and_undoes(tor_network: Network, short_path: Path, bento: Bento) -> None:
    before = settings(tor_network)
    state = short_path / "s"
    relay = ["setup-relay", "--control", str(tor_network.relays[0].control), "--state", str(state), "--yes"]
    dry = bento(*relay, "--dry-run")
    assert dry.returncode == 0 and "+ HiddenServicePort 80 unix:" in dry.stdout
    assert settings(tor_network) == before and not state.exists()
    told = json.loads(bento(*relay, "--json").stdout)
    assert told["address"].endswith(".onion") and told["added"]
    again = bento(*relay)
    assert "nothing to do" in again.stderr and told["address"] in again.stdout
    refused = bento("serve", "--state", str(state), "--publish")
    assert refused.returncode == 3 and told["address"] in refused.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "bento_tor.cli", "serve", "--state", str(state), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["owner"] == "relay"
        check_reachable(tor_network.client.socks, told["address"], 80, timeout_s=60)
        with connect(told["address"], socks=str(tor_network.client.socks), timeout_s=60) as box:
            assert list(box.run(load("hello"))) == [b"hello world"]
            assert box.policy_signed is True, "setup-relay gave the relay's tor a key that we know"
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
        process.stdout.close()
    dry = bento(*relay, "--undo", "--dry-run")
    assert "- HiddenServicePort" in dry.stdout and settings(tor_network) != before
    assert bento(*relay, "--undo").returncode == 0
    assert settings(tor_network) == before
    nothing = bento(*relay, "--undo")
    assert nothing.returncode == 3 and "nothing to undo" in nothing.stderr


@pytest.mark.parametrize("exit_relay", [False, True])
def test_the_exit_policy_opens_exactly_the_virtual_address(
    tor_network: Network, short_path: Path, bento: Bento, exit_relay: bool
) -> None:
    node = tor_network.exits[0] if exit_relay else tor_network.relays[1]
    with tor_network.connect(node) as tor:
        stated = exit_policy(tor)
    relay = ["setup-relay", "--control", str(node.control), "--state", str(short_path / "s"), "--yes"]
    # The virtual address is put on this host's lo for the time of the test.
    done = bento(*relay, "--exit-port", "4444")
    assert done.returncode == 0, done.stderr
    try:
        with tor_network.connect(node) as tor:
            rules = parse_policy(exit_policy(tor))
            assert tor.get_conf("ExitPolicyRejectPrivate") == ["1"]
        assert accepts(rules, ip_address("192.0.2.80"), 4444)
        assert accepts(rules, ip_address("203.0.113.1"), 80) is exit_relay
        for address, port in (("127.0.0.1", 4444), ("10.0.0.1", 4444)):
            assert not accepts(rules, ip_address(address), port)
        if not exit_relay:
            assert not accepts(rules, ip_address("192.0.2.80"), 4445)
            assert not accepts(rules, ip_address("192.0.2.81"), 4444)
        assert "nothing to do" in bento(*relay, "--exit-port", "4444").stderr
    finally:
        assert bento(*relay, "--undo").returncode == 0
    with tor_network.connect(node) as tor:
        deadline = time.monotonic() + 120
        while exit_policy(tor) != stated:
            assert time.monotonic() < deadline, "the policy is not what it was"
            time.sleep(0.5)


def test_setup_relay_of_a_tor_that_is_not_there_says_what_it_tried(bento: Bento, short_path: Path) -> None:
    done = bento("setup-relay", "--control", f"unix:{short_path}/none", "--state", str(short_path / "s"))
    assert done.returncode == 4 and f"{short_path}/none" in done.stderr
    client_only = bento("setup-relay", "--control", "127.0.0.1:1")
    assert client_only.returncode == 4


def test_egress_through_tor_reaches_an_onion_and_nothing_of_the_host(
    tor_network: Network, short_path: Path, new_box
) -> None:
    """serve with its three processes: a function's requests go through the broker and a circuit of their own."""
    socks = str(tor_network.client.socks)
    config = f'socks = "{socks}"\n[policy]\negress = ["tor"]\n'
    running = new_box("--publish", "--control", str(tor_network.client.control), config=config)
    check_reachable(tor_network.client.socks, running.told["address"], 80, timeout_s=60)
    text = """# /// script
# [tool.bento]
# entry = "knock"
# egress = "tor"
# ///
import socket
def knock(onion):
    with socket.create_connection((onion, 80), timeout=60) as sock:
        sock.sendall(b"\\xff\\xff\\xff\\xff")
        api.send(b"Refused" if b"Refused" in sock.recv(4096) else b"nothing")
    for host, port in (("127.0.0.1", 9051), ("192.0.2.2", 80), ("169.254.169.254", 80)):
        try:
            socket.create_connection((host, port), timeout=20).close()
            api.send("reached " + host)
        except OSError as error:
            api.send(type(error).__name__)
"""
    with connect(running.told["address"], socks=socks, timeout_s=60) as box:
        session = box.run(parse("knock", text), make_call("knock", running.told["address"]))
        messages = [message.decode() for message in session]
        assert session.wait().word == "returned", session.wait()
    assert messages[0] == "Refused"  # the box's own protocol, reached through its onion address
    assert len(messages) == 4 and not any("reached" in message for message in messages), messages


def test_exit_egress_is_closed_where_the_policy_does_not_open_it(tor_network: Network, new_box) -> None:
    config = f'relay = "{tor_network.exits[0].control}"\n[policy]\negress = ["exit"]\n'
    running = new_box(config=config)
    text = """# /// script
# [tool.bento]
# egress = "exit"
# ///
import socket
def f():
    for host in ("127.0.0.1", "10.0.0.1", "192.0.2.2", "::1"):
        try:
            socket.create_connection((host, 80), timeout=20).close()
            api.send("reached " + host)
        except OSError as error:
            api.send(str(error))
"""
    with running.connect() as box:
        messages = [message.decode() for message in box.run(parse("f", text))]
    assert len(messages) == 4 and not any("reached" in message for message in messages), messages
