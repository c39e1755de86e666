"""The exit route: a circuit of the client's own, whose last hop is the box's relay, and no other way out of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bento_tor.client import Box, Retries, connect, load, parse
from bento_tor.client.exit_route import ExitRoute
from bento_tor.client.route import BoxAddress
from bento_tor.client.source import make_call
from bento_tor.controller import relay
from bento_tor.controller.circuits import KeptCircuit
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import StreamEvent
from bento_tor.controller.paths import parse_guards
from bento_tor.controller.streams import SocksStream
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, ConnectError
from bento_tor.network import Network, Node
from bento_tor.network.ports import allocate_ports

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

Bento = Callable[..., CompletedProcess[str]]
WITHIN_S = 60.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bento_tor.cli", *arguments]


def fingerprint_of(network: Network, node: Node) -> str:
    with network.connect(node) as tor:
        return tor.get_info("fingerprint")


@dataclass(frozen=True)
class Beside:
    """A box beside a relay, which takes exits to it at `port`."""

    network: Network
    node: Node
    fingerprint: str
    port: int
    onion: str

    @property
    def address(self) -> BoxAddress:
        return BoxAddress("exit", self.fingerprint, self.port)

    def route(self) -> ExitRoute:
        return ExitRoute(self.network.own_folder, self.network.own_lines(), timeout_s=WITHIN_S)

    def box(self, route: ExitRoute, word: str = "x") -> Box:
        way = route.transport(self.address, isolation=word)
        return connect(str(self.address), transport=way, timeout_s=WITHIN_S, retries=Retries(first_wait_s=0.05))


@pytest.fixture(scope="module")
def beside(tor_network: Network) -> Iterator[Beside]:
    """One for the tests of this file. The port is not the usual one: other boxes may run on this machine."""
    node = tor_network.relays[1]
    (port,) = allocate_ports(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bento-x-")))
        state, config = folder / "s", folder / "box.toml"
        setup = ["setup-relay", "--control", str(node.control), "--state", str(state), "--yes", "--json"]
        done = subprocess.run(command(*setup, "--exit-port", str(port)), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        stack.callback(subprocess.run, command(*setup, "--undo"), check=True, capture_output=True, timeout=60)
        config.write_text("ready = 1\n[policy.limits]\nwall_s = 60\n")
        log = stack.enter_context((folder / "log").open("w+"))
        argv = command("serve", "--state", str(state), "--config", str(config), "--json")
        serving = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log))
        stack.callback(serving.terminate)
        assert serving.stdout is not None
        told = json.loads(serving.stdout.readline() or b"{}")
        assert told, (folder / "log").read_text()
        yield Beside(tor_network, node, fingerprint_of(tor_network, node), port, told["address"])


@pytest.fixture(scope="module")
def route(beside: Beside) -> Iterator[ExitRoute]:
    """One tor for the tests that do not end theirs."""
    with beside.route() as started:
        yield started


def own(route: ExitRoute, beside: Beside, word: str) -> tuple[Tor, Endpoint, KeptCircuit]:
    """The client's controller, its SOCKS port, and the circuit for that SOCKS word."""
    circuit, running = route.circuit(beside.address, word)
    return running.tor, running.socks, circuit


def circuits(tor: Tor) -> dict[str, list[str]]:
    """The fingerprints of every circuit that stands."""
    lines = [line.split() for line in tor.get_info("circuit-status").splitlines()]
    return {
        words[0]: [hop.split("~")[0].removeprefix("$") for hop in words[2].split(",")]
        for words in lines
        if words[1:2] == ["BUILT"]
    }


def streams(tor: Tor) -> list[tuple[str, str]]:
    """The circuit and the target of each stream."""
    lines = [line.split() for line in tor.get_info("stream-status").splitlines()]
    return [(words[2], words[3]) for words in lines if len(words) > 3]


def the_circuit(tor: Tor, beside: Beside) -> str:
    """The circuit of the one stream to the box."""
    (used,) = {circuit for circuit, target in streams(tor) if target == f"192.0.2.80:{beside.port}"}
    return used


def try_to_reach(socks: Endpoint, word: str, host: str, port: int) -> None:
    with SocksStream(socks, user=word, password="x") as stream:
        stream.settimeout(WITHIN_S)
        stream.connect((host, port))


def test_a_function_is_run_through_a_circuit_that_ends_at_the_boxs_relay(beside: Beside, route: ExitRoute) -> None:
    with beside.box(route) as box:
        session = box.run(load("add"), make_call("add", 5, 12))
        assert session.maybe_receive() == b"17"
        tor, _, _ = own(route, beside, "another word")
        path = circuits(tor)[the_circuit(tor, beside)]
        assert len(path) == len(set(path)) == 3 and path[-1] == beside.fingerprint
        offered, kept = parse_guards(tor.get_info("entry-guards")), beside.network.own_folder / "data" / "guards"
        guards = [one for one in kept.read_text().split() if one in offered and one != beside.fingerprint]
        assert path[0] == guards[0]
        assert tor.get_conf("__LeaveStreamsUnattached") == ["1"]
        for strict in ("ClientDNSRejectInternalAddresses", "ClientRejectInternalAddresses"):
            assert tor.get_conf(strict) == ["1"], "as a production client has it"
        assert session.wait().word == "returned"
        assert box.policy_signed is True
        assert box.maybe_policy is not None and box.maybe_policy.address == beside.onion


def test_the_relay_lets_nothing_out_but_the_boxs_port(beside: Beside, route: ExitRoute) -> None:
    with beside.network.connect(beside.node) as tor:
        assert tor.get_conf("ExitPolicy") == [f"accept 192.0.2.80:{beside.port}", "reject *:*"]
    _, socks, circuit = own(route, beside, "word")
    try_to_reach(socks, "word", "192.0.2.80", beside.port)
    for host, port, reason in (
        ("192.0.2.80", beside.port + 1, "EXITPOLICY"),
        ("192.0.2.81", beside.port, "EXITPOLICY"),
        ("203.0.113.1", 80, "EXITPOLICY"),
        # An END that names an internal address, even to refuse it, is a breach to a production client.
        ("127.0.0.1", beside.port, "TORPROTOCOL"),
        ("10.0.0.1", 22, "TORPROTOCOL"),
    ):
        circuit.forget_end()
        with pytest.raises(OSError):
            try_to_reach(socks, "word", host, port)
        assert circuit.wait_end_reason(10) == reason, host
    try_to_reach(socks, "word", "192.0.2.80", beside.port)


def test_what_is_not_ours_goes_where_tor_takes_it_and_not_on_our_circuit(beside: Beside, route: ExitRoute) -> None:
    tor, socks, circuit = own(route, beside, "ours")
    with tor.events("STREAM") as events, SocksStream(socks, user="a stranger's", password="x") as stream:
        stream.settimeout(WITHIN_S)
        stream.meet()
        stream.ask("203.0.113.1", 80, b"")
        on = ""
        for event in events.until(time.monotonic() + WITHIN_S):
            if isinstance(event, StreamEvent) and event.keyword("SOCKS_USERNAME") == "a stranger's":
                on = event.circuit_id
                if event.status == "SENTCONNECT":
                    break
        assert on and on != circuit.circuit_id
        assert circuits(tor)[on][-1] != beside.fingerprint


def test_a_circuit_that_dies_comes_back_on_the_same_path_and_nothing_is_lost(beside: Beside, route: ExitRoute) -> None:
    echo = parse("f", "def f():\n    while (said := api.recv()) != b'stop': api.send(said)")
    with beside.box(route, "dies") as box:
        session = box.run(echo)
        session.send("one")
        assert session.maybe_receive() == b"one"
        tor, _, _ = own(route, beside, "another word")
        before = the_circuit(tor, beside)
        path = circuits(tor)[before]
        tor.ask(f"CLOSECIRCUIT {before}")
        session.send("two")
        assert session.maybe_receive() == b"two"
        after = the_circuit(tor, beside)
        # Another middle hop for each circuit that a relay closes would in the end be its friend's.
        assert after != before and circuits(tor)[after] == path
        session.send("stop")
        assert session.wait().word == "returned"


def test_words_share_no_circuit(beside: Beside, route: ExitRoute) -> None:
    with beside.box(route, "a") as one, beside.box(route, "b") as other:
        one.ping()
        other.ping()
        tor, _, _ = own(route, beside, "c")
        used = [circuit for circuit, target in streams(tor) if target == f"192.0.2.80:{beside.port}"]
        assert len(used) == len(set(used)) == 2


def test_guards_are_the_same_for_a_second_command_at_once_and_next_time(
    beside: Beside, route: ExitRoute, eventually: Callable[..., None]
) -> None:
    kept = beside.network.own_folder / "data" / "state"
    guard = route.path(beside.address)[0]
    eventually(lambda: guard.fingerprint in kept.read_text())
    assert guard.fingerprint in (beside.network.own_folder / "data" / "guards").read_text()
    with beside.route() as second:
        assert second.path(beside.address)[0].fingerprint == guard.fingerprint
        assert len(list(beside.network.own_folder.glob("copy-*"))) == 1
    assert not list(beside.network.own_folder.glob("copy-*"))
    route.close()  # it starts again for the next test that wants it
    assert route.path(beside.address)[0].fingerprint == guard.fingerprint


def test_its_tor_ends_with_a_client_that_is_killed(
    beside: Beside, eventually: Callable[..., None], lives: Callable[[int], bool]
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from bento_tor.client.exit_route import ExitRoute\n"
        "route = ExitRoute(Path(sys.argv[1]), sys.argv[2:], timeout_s=60)\n"
        "print(route._running().own.tor.get_info('process/pid'), flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, str(beside.network.own_folder), *beside.network.own_lines()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        os.kill(client.pid, signal.SIGKILL)
    eventually(lambda: not lives(pid))


def test_a_relay_without_the_port_is_said(beside: Beside, route: ExitRoute) -> None:
    other = beside.network.relays[0]
    address = BoxAddress("exit", fingerprint_of(beside.network, other), beside.port)
    with pytest.raises(ConnectError, match="takes nobody to a box") as caught:
        way = route.transport(address, isolation="x")
        with connect(str(address), transport=way, timeout_s=WITHIN_S) as box:
            box.ping()
    assert "setup-relay --exit-port" in caught.value.hint and other.name in caught.value.message
    with pytest.raises(ConfigError, match="no relay nobody"):
        route.resolve("nobody")


def test_the_commands(beside: Beside, bento: Bento, tmp_path: Path) -> None:
    network = ["--network", str(beside.network.directory)]
    by_name = ["--box", f"{beside.node.name}:{beside.port}", "--route", "exit", *network]
    by_fingerprint = ["--box", str(beside.address), *network]
    done = bento("-q", "client", "run", "hello", *by_name)
    assert (done.returncode, done.stdout) == (0, "hello world\n"), done.stderr
    shown = json.loads(bento("client", "route", "show", *by_name, "--json").stdout)
    assert shown["box"] == str(beside.address) and len(shown["path"]) == 3
    assert shown["path"][-1] == {"fingerprint": beside.fingerprint, "nickname": beside.node.name}
    # What is stored is found again by the relay's fingerprint; the onion address that signed is kept.
    stored = bento("client", "upload", "add", *by_name)
    assert stored.returncode == 0 and beside.onion in stored.stderr, (stored.returncode, stored.stdout, stored.stderr)
    assert bento("-q", "client", "exec", "add", "5", "12", *network).returncode == 0
    assert bento("-q", "client", "recv", "add", *network).stdout == "17\n"
    keys = tmp_path / "keyring.json"
    ring = json.loads(keys.read_text())
    assert ring["pins"] == {str(beside.address): beside.onion}
    assert ring["signed"] == [str(beside.address)], "a policy without a signature is not taken from it any more"
    # Another one signs now.
    ring["pins"] = {str(beside.address): "a" * 56 + ".onion"}
    ring["policies"] = {}
    keys.write_text(json.dumps(ring))
    refused = bento("client", "upload", "hello", *by_fingerprint)
    assert refused.returncode == 6 and "it is not used" in refused.stderr, refused.stderr
    assert bento("client", "keys", "forget", str(beside.address)).returncode == 0
    assert bento("client", "upload", "hello", *by_fingerprint).returncode == 0


def test_words_for_what_does_not_go_together(tor_network: Network, bento: Bento) -> None:
    relay_name, onion = "A" * 40, "a" * 56 + ".onion"
    for arguments, code, words in (
        (("client", "run", "hello", "--box", relay_name, "--socks", "127.0.0.1:1"), 2, "starts one of its own"),
        (("client", "run", "hello", "--box", relay_name, "--route", "onion"), 3, "not reached by --route onion"),
        (("client", "run", "hello", "--box", onion, "--route", "exit"), 3, ""),
        (("client", "route", "show", "--box", "unix:/none"), 3, "only the exit route"),
        (("client", "run", "hello", "--box", relay_name, "--network", str(tor_network.directory)), 3, "no relay"),
    ):
        done = bento(*arguments)
        assert done.returncode == code and words in done.stderr, done.stderr


def test_the_port_where_clients_look_is_the_one_that_setup_relay_opens(tor_network: Network, bento: Bento) -> None:
    tor = ["--control", str(tor_network.relays[0].control)]
    shown = bento("setup-relay", *tor, "--exit-port", "--dry-run")
    assert f"accept 192.0.2.80:{relay.EXIT_PORT}" in shown.stdout, shown.stderr
