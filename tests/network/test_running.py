"""What holds in a network that runs. All of these share the one of the run."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_tor.controller import onion
from bento_tor.controller.connection import connect
from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.policy import exit_policy
from bento_tor.controller.streams import check_reachable, open_stream
from bento_tor.errors import ConfigError, ConnectError, TorError
from bento_tor.network import Network, Role, status, up
from bento_tor.network.plan import NetworkSettings

pytestmark = pytest.mark.tor

PRODUCTION = {
    "ClientDNSRejectInternalAddresses": ["1"],
    "ClientRejectInternalAddresses": ["1"],
    "ExitPolicyRejectPrivate": ["1"],
}


@pytest.fixture
def echo(serve_on_socket: Callable[..., Path]) -> Path:
    """A unix socket on which each connection gets back its first bytes."""
    return serve_on_socket(lambda stream: stream.sendall(stream.recv(100)))


@pytest.mark.parametrize("role", list(Role))
def test_every_kind_of_node_has_the_production_values(tor_network: Network, role: Role) -> None:
    nodes = [node for node in tor_network.nodes if node.role is role]
    assert nodes
    for node in nodes:
        with tor_network.connect(node) as tor:
            assert {key: tor.get_conf(key) for key in PRODUCTION} == PRODUCTION, node.name


def test_the_client_listens_as_a_users_tor_should(tor_network: Network) -> None:
    with tor_network.connect(tor_network.client) as tor:
        words = tor.get_conf("SocksPort")[0].split()
    assert set(words[1:]) == {"ExtendedErrors", "IsolateSOCKSAuth", "KeepAliveIsolateSOCKSAuth"}


def test_all_know_each_other_and_only_exits_are_exits(tor_network: Network) -> None:
    assert {(node.bootstrap.progress, node.consensus) for node in status(tor_network.directory)} == {(100, 8)}
    with tor_network.connect(tor_network.client) as tor:
        lines = tor.get_info("ns/all").splitlines()
    names = [line.split()[1] for line in lines if line.startswith("r ")]
    flags = [line.split()[1:] for line in lines if line.startswith("s ")]
    assert {name for name, has in zip(names, flags, strict=True) if "Exit" in has} == {"r4", "r5"}
    assert all({"Running", "Valid", "HSDir", "Guard"} <= set(has) for has in flags)


def test_all_relays_weigh_the_same(tor_network: Network) -> None:
    """Without that, clients pile onto one of them and onion services hang: see network/torrc.py."""
    with tor_network.connect(tor_network.client) as tor:
        weights = [tor.get_info(f"ns/name/{node.name}").splitlines()[-1] for node in tor_network.relays]
    assert set(weights) == {"w Bandwidth=1000"}


def test_exits_accept_public_addresses_and_no_private_ones(tor_network: Network) -> None:
    with tor_network.connect(tor_network.exits[0]) as tor:
        rules = exit_policy(tor).splitlines()
    assert "reject 127.0.0.0/8:*" in rules
    assert "reject 10.0.0.0/8:*" in rules
    assert rules[-1] == "accept *:*"
    assert not any("192.0.2" in rule for rule in rules)
    with tor_network.connect(tor_network.relays[0]) as tor:
        assert exit_policy(tor).splitlines()[-1] == "reject *:*"


def test_a_client_refuses_internal_addresses_as_in_production(tor_network: Network) -> None:
    with pytest.raises(ConnectError):
        open_stream(tor_network.client.socks, "127.0.0.1", 80, timeout_s=2)


def test_an_onion_service_is_published_reached_and_withdrawn(tor_network: Network, echo: Path) -> None:
    seed = onion.mint_seed()
    steps: list[str] = []
    with tor_network.connect(tor_network.relays[0]) as host:
        address = onion.publish(host, seed, 80, f"unix:{echo}", timeout_s=60, report=steps.append)
        assert address == onion.onion_address(seed)
        assert "descriptor: uploaded" in steps
        with open_stream(tor_network.client.socks, address, 80, timeout_s=60) as stream:
            stream.sendall(b"there and back")
            assert stream.recv(100) == b"there and back"
        assert check_reachable(tor_network.client.socks, address, 80, timeout_s=60) < 60
        assert address.removesuffix(".onion") in host.get_info("onions/current")
        onion.withdraw(host, address)
        assert host.get_info("onions/current") == ""
        # The same seed again: the same address, also through a connection of its own.
        assert onion.publish(host, seed, 80, f"unix:{echo}", timeout_s=60) == address
        with pytest.raises(TorError, match="refused ADD_ONION"):
            onion.publish(host, seed, 80, f"unix:{echo}", timeout_s=60)


def test_a_service_goes_with_its_connection_unless_detached(tor_network: Network, echo: Path) -> None:
    node = tor_network.relays[1]
    with tor_network.connect(node) as host:
        lost = onion.publish(host, onion.mint_seed(), 80, f"unix:{echo}", timeout_s=60)
        kept = onion.publish(host, onion.mint_seed(), 80, f"unix:{echo}", timeout_s=60, detach=True)
    with tor_network.connect(node) as host:
        assert host.get_info("onions/detached") == kept.removesuffix(".onion")
        assert host.get_info("onions/current") == ""
        onion.withdraw(host, kept)
        with pytest.raises(TorError, match="DEL_ONION"):
            onion.withdraw(host, lost)


def test_a_service_directory_with_our_key_has_our_address(tor_network: Network, echo: Path, short_path: Path) -> None:
    seed = onion.mint_seed()
    place = short_path / "service"
    place.mkdir(mode=0o700)
    (place / "hs_ed25519_secret_key").write_bytes(onion.service_key_file(seed))
    with tor_network.connect(tor_network.relays[2]) as host:
        host.set_conf([("HiddenServiceDir", str(place)), ("HiddenServicePort", f"80 unix:{echo}")])
        try:
            address = (place / "hostname").read_text().strip()
            assert address == onion.onion_address(seed)
            onion.wait_uploaded(host, address, timeout_s=60)
            onion.wait_uploaded(host, address, timeout_s=60)  # long since uploaded: found all the same
            check_reachable(tor_network.client.socks, address, 80, timeout_s=60)
        finally:
            host.set_conf([("HiddenServiceDir", None)], reset=True)


def test_an_address_that_does_not_exist(tor_network: Network) -> None:
    address = onion.onion_address(onion.mint_seed())
    begun = time.monotonic()
    with pytest.raises(ConnectError, match="cannot be reached"):
        check_reachable(tor_network.client.socks, address, 80, timeout_s=3)
    assert time.monotonic() - begun < 10
    with tor_network.connect(tor_network.client) as tor, pytest.raises(TorError, match="no directory confirmed"):
        onion.wait_uploaded(tor, address, timeout_s=3)


def test_a_client_can_be_asked_for_events(tor_network: Network) -> None:
    with tor_network.connect(tor_network.client) as tor, tor.events("HS_DESC") as events:
        tor.ask(f"HSFETCH {onion.onion_address(onion.mint_seed()).removesuffix('.onion')}")
        actions = []
        for event in events.until(time.monotonic() + 20):
            assert isinstance(event, HsDescEvent)
            actions.append(event.action)
            if event.action == "FAILED":
                break
    assert actions[0] == "REQUESTED"


def test_a_socks_port_is_told_from_a_control_port(tor_network: Network) -> None:
    with pytest.raises(TorError, match="no control port") as error:
        connect(tor_network.client.socks, timeout_s=10)
    assert "SOCKS" in error.value.hint


def test_a_second_network_in_the_same_place_is_refused(tor_network: Network) -> None:
    with pytest.raises(ConfigError, match="already"):
        up(NetworkSettings(), tor_network.directory)
    assert all(node.alive for node in status(tor_network.directory))


def test_the_command_line_tells_about_it(tor_network: Network) -> None:
    place = str(tor_network.directory)
    told = json.loads(bento("network", "status", "--dir", place, "--json"))
    assert [node["name"] for node in told["nodes"]] == [node.name for node in tor_network.nodes]
    assert all(node["alive"] and node["progress"] == 100 for node in told["nodes"])
    assert (
        bento("network", "env", "--dir", place).splitlines()[0] == f"export BENTO_TOR_SOCKS={tor_network.client.socks}"
    )
    # Each control connection since then has left a line.
    assert "Bootstrapped 100%" in bento("network", "logs", "c1", "-n", "100000", "--dir", place)
    assert set(json.loads(bento("network", "logs", "--dir", place, "--json"))["logs"]) == {
        n.name for n in tor_network.nodes
    }
    assert "100 % (done)" in bento("network", "status", "--dir", place)


def bento(*arguments: str) -> str:
    program = "import sys; from bento_tor.cli.main import main; sys.argv[0] = 'bento-tor'; main()"
    argv = [sys.executable, "-c", program, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
