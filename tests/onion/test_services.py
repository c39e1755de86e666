"""Onion services of the operator on real tors: made, shown, locked, opened, gone; and boxes behind them."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bento_tor.controller import client_auth, onion, services
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor
from bento_tor.errors import TorError
from bento_tor.network import Network

Bento = Callable[..., CompletedProcess[str]]

# Clients of a service that was put up again ask its old introduction points first, and hear nothing; with bad luck a
# first connection too. Another try helps.
CHECK_S = "20"
WITHIN_S = 240.0


def told(done: CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def target(serve_on_socket: Callable[..., Path]) -> str:
    """Something that answers behind a service."""
    return f"unix:{serve_on_socket(lambda stream: stream.sendall(b'here'))}"


class Operator:
    """The commands, on the network's client, with one state folder."""

    def __init__(self, bento: Bento, network: Network, state: Path) -> None:
        self._bento = bento
        self._tor = ["--control", str(network.client.control), "--socks", str(network.client.socks)]
        self.state = ["--state", str(state)]

    def __call__(self, *arguments: str) -> CompletedProcess[str]:
        offline = arguments[:2] == ("auth", "list")
        place = self.state if arguments[0] != "client" else []
        words = ["client", *arguments[1:]] if arguments[0] == "client" else ["onion", *arguments]
        patience = ["--timeout", CHECK_S if arguments[0] == "check" else "50"]
        return self._bento(*words, *place, *([] if offline else [*self._tor, *patience]))


def until(
    wanted: Callable[[CompletedProcess[str]], bool], run: Callable[[], CompletedProcess[str]]
) -> CompletedProcess[str]:
    """Run it until it says what is wanted: a new descriptor reaches one directory after another, and any is asked."""
    deadline = time.monotonic() + WITHIN_S
    while not wanted(done := run()):
        assert time.monotonic() < deadline, done.stderr
    return done


def refused(words: str) -> Callable[[CompletedProcess[str]], bool]:
    return lambda done: done.returncode == 6 and words in done.stderr


def reached(done: CompletedProcess[str]) -> bool:
    return done.returncode == 0


@pytest.fixture
def operator(bento: Bento, tor_network: Network, short_path: Path) -> Operator:
    return Operator(bento, tor_network, short_path / "state")


@pytest.mark.tor
@pytest.mark.parametrize("kind", [[], ["--dir"]], ids=["detached", "dir"])
def test_a_service_from_its_making_to_its_end(
    operator: Operator, target: str, kind: list[str], bento: Bento, tor_network: Network, short_path: Path
) -> None:
    made = told(operator("create", "web", "--target", target, "--pow", "7", *kind, "--json"))
    address = made["address"]
    try:
        assert made["up"] and onion.is_onion_address(address)
        shown = told(operator("show", "web", "--json"))
        assert shown["up"] and not shown["locked"] and shown["port"] == 80
        found = told(until(reached, lambda: operator("check", "web", "--json")))
        assert found["connected_s"] > 0 and found["descriptor"]["intro_points"] == 3
        # Proof of work is offered, and not asked for while nobody presses.
        assert found["descriptor"]["pow_effort"] == 0 and found["descriptor"]["single_hop"] is False
        row = {row["name"]: row for row in told(operator("list", "--json"))["services"]}["web"]
        assert row["address"] == address and row["up"] is True
        # Said again it stays what it was: one address, the same settings.
        again = told(operator("create", "web", *kind, "--json"))
        assert (again["address"], again["pow_rate"], again["target"]) == (address, 7, target)
    finally:
        removed = told(operator("remove", "web", "--json"))
    assert removed["was_up"] and removed["key_kept"]
    until(refused("its descriptor is there"), lambda: operator("check", address))
    if kind:
        # Its folder stays with tor, and nobody else's key goes into it.
        other = Operator(bento, tor_network, short_path / "other")("create", "web", "--target", target, *kind)
        assert other.returncode == 3 and "the key of another service" in other.stderr, other.stderr


@pytest.mark.tor
@pytest.mark.parametrize("kind", [[], ["--dir"]], ids=["detached", "dir"])
def test_who_has_a_key_gets_in_and_nobody_else(
    operator: Operator, target: str, kind: list[str], tmp_path: Path
) -> None:
    address = told(operator("create", "vault", "--target", target, *kind, "--json"))["address"]
    alice, pair = tmp_path / "alice", client_auth.mint_pair()
    try:
        assert told(operator("auth", "add", "vault", "alice", "-o", str(alice), "--json"))["applied"]
        public = client_auth.public_line(pair.public)
        assert told(operator("auth", "add", "vault", "bob", "--public", public, "--json"))["private"] is None
        assert alice.stat().st_mode & 0o777 == 0o600
        until(refused("wants client authorisation"), lambda: operator("check", address))
        bob = tmp_path / "bob"
        bob.write_text(client_auth.private_line(address, pair.private))
        for key in (alice, bob):  # several at once
            told(operator("client", "auth", "add", address, f"@{key}", "--json"))
            words = ("check", address, "--key", str(key), "--json")
            assert told(until(reached, lambda words=words: operator(*words)))["descriptor"]["readable"]  # type: ignore[misc]
        listed = told(operator("client", "auth", "list", "--json"))["keys"]
        assert [key["address"] for key in listed] == [address]
        shown = told(operator("show", "vault", "--json"))
        assert shown["client_names"] == ["alice", "bob"] and shown["descriptor"] == {"readable": False}
        assert told(operator("auth", "revoke", "vault", "bob", "--json"))["clients"] == ["alice"]
        until(refused("does not know this key"), lambda: operator("check", address, "--key", str(bob)))
        # Changing a setting of a tor takes away the keys that it was only told: give alice's again.
        told(operator("client", "auth", "add", address, f"@{alice}", "--json"))
        until(reached, lambda: operator("check", address, "--key", str(alice)))
        assert told(operator("auth", "revoke", "vault", "alice", "--json"))["locked"], "the last one opens nothing"
        until(refused(""), lambda: operator("check", address))
        assert told(operator("auth", "revoke", "vault", "--open", "--json"))["locked"] is False
        until(reached, lambda: operator("check", address))
    finally:
        operator("client", "auth", "remove", address)
        operator("remove", "vault")


@pytest.mark.tor
@pytest.mark.parametrize("kind", [[], ["--dir"]], ids=["detached", "dir"])
def test_changes_one_right_after_another_all_hold(
    operator: Operator, target: str, kind: list[str], tmp_path: Path
) -> None:
    """A directory refuses the later of two descriptors of one second, and keeps the keys of the first for an hour."""
    address = told(operator("create", "safe", "--target", target, *kind, "--json"))["address"]
    alice, _, carol = keys = [tmp_path / name for name in ("alice", "bob", "carol")]
    try:
        for key in keys:
            assert told(operator("auth", "add", "safe", key.name, "-o", str(key), "--json"))["applied"]
        told(operator("auth", "revoke", "safe", "alice", "--json"))
        for key, wanted in ((carol, reached), (alice, refused("does not know this key"))):
            told(operator("client", "auth", "add", address, f"@{key}", "--json"))
            words = ("check", address, "--key", str(key))
            until(wanted, lambda words=words: operator(*words))  # type: ignore[misc]
    finally:
        operator("client", "auth", "remove", address)
        operator("remove", "safe")


@pytest.mark.tor
def test_a_tor_at_rest_that_forgot_its_circuits_puts_a_service_up(own_network: Network) -> None:
    """Its directory lacked something for a moment: it has all circuits that it wants, and believes that it has none."""

    def until_dir_info_is(value: str) -> None:
        deadline = time.monotonic() + 60
        while tor.get_info("status/enough-dir-info") != value:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    with connect(own_network.client.control) as tor:
        tor.set_conf([("__DisablePredictedCircuits", "1"), ("ExitNodes", "$" + 40 * "A"), ("StrictNodes", "1")])
        until_dir_info_is("0")
        tor.set_conf([("ExitNodes", None), ("StrictNodes", "0")])
        until_dir_info_is("1")
        onion.publish(tor, onion.mint_seed(), 80, "127.0.0.1:1", timeout_s=30)


@pytest.mark.tor
def test_check_says_what_failed(operator: Operator, short_path: Path) -> None:
    nobody = onion.onion_address(onion.mint_seed())
    done = operator("check", nobody)
    assert done.returncode == 6 and f"{nobody} is not published" in done.stderr, done.stderr
    address = told(operator("create", "empty", "--target", f"unix:{short_path}/nobody", "--json"))["address"]
    try:
        done = until(refused("look at what it leads to"), lambda: operator("check", "empty"))
        assert address in done.stderr
    finally:
        operator("remove", "empty", "--forget-key")
    assert operator("check", "empty").returncode == 3
    mistyped = operator("check", nobody.replace(nobody[10], "a" if nobody[10] != "a" else "b", 1))
    assert mistyped.returncode == 3 and "onion address" in mistyped.stderr


@pytest.mark.tor
def test_other_services_of_that_tor_are_left_alone(
    operator: Operator, tor_network: Network, target: str, short_path: Path
) -> None:
    """SETCONF replaces all services at once: the others are said again, with all their options."""
    theirs = str(tor_network.client.directory / "theirs")
    lines = [("HiddenServiceDir", theirs), ("HiddenServicePort", "80 127.0.0.1:1"), ("HiddenServiceMaxStreams", "5")]
    with tor_network.connect(tor_network.client) as tor:
        tor.set_conf(lines)
        try:
            before = tor.ask("GETCONF HiddenServiceOptions").lines
            told(operator("create", "beside", "--target", target, "--dir", "--json"))
            assert len(services.dirs(tor)) == 2
            names = {row["address"] for row in told(operator("list", "--json"))["services"]}
            assert theirs in names
            told(operator("remove", "beside", "--json"))
            assert tor.ask("GETCONF HiddenServiceOptions").lines == before
        finally:
            tor.set_conf([("HiddenServiceDir", None)], reset=True)


def test_a_key_is_minted_without_a_tor_and_wrong_words_are_refused(bento: Bento, short_path: Path) -> None:
    state = ["--state", str(short_path / "s")]
    made = told(bento("onion", "create", "web", "--target", "127.0.0.1:80", "--offline", "--json", *state))
    assert onion.is_onion_address(made["address"]) and not made["up"]
    seed = short_path / "s" / "onions" / "web.seed"
    assert onion.onion_address(onion.load_seed(seed)) == made["address"]
    assert (seed.stat().st_mode & 0o777, seed.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    secret = client_auth.base32(client_auth.mint_pair().private)
    for words, code in (
        (["onion", "create", "../x", "--target", "127.0.0.1:80", "--offline", *state], 3),
        (["onion", "create", "box", "--target", "127.0.0.1:80", "--offline", *state], 3),
        (["onion", "create", "new", "--offline", *state], 2),
        (["onion", "create", "new", "--target", "nowhere", "--offline", *state], 3),
        (["onion", "create", "--ephemeral", "web", "--target", "127.0.0.1:80", *state], 2),
        (["onion", "show", "none", *state], 3),
        (["onion", "auth", "add", "none", "alice", *state], 3),
        (["onion", "auth", "add", "web", "../alice", *state], 3),
        (["onion", "auth", "add", "web", "alice", "--public", "A" * 52, *state], 3),
        (["onion", "auth", "revoke", "web", *state], 2),
        (["client", "auth", "add", made["address"], secret], 3),
        (["client", "auth", "add", "x.onion", "-"], 3),
        (["client", "auth", "add", made["address"]], 2),
    ):
        done = bento(*words)
        assert done.returncode == code and "error:" in done.stderr, (words, done.stderr)
        assert secret not in done.stderr + done.stdout


@pytest.mark.tor
def test_an_ephemeral_service_goes_with_its_command(
    tor_network: Network, target: str, short_path: Path, eventually: Callable[..., None]
) -> None:
    import sys

    control = str(tor_network.client.control)
    words = ["onion", "create", "--ephemeral", "--target", target, "--control", control, "--json"]
    process = subprocess.Popen([sys.executable, "-m", "bento_tor.cli", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["address"]
    with tor_network.connect(tor_network.client) as tor:
        assert services.own_descriptor(tor, address)
        process.kill()
        process.wait()
        process.stdout.close()
        eventually(lambda: not services.own_descriptor(tor, address))


@pytest.mark.tor
def test_a_file_for_a_tor_without_a_control_port(bento: Bento, short_path: Path) -> None:
    folder = short_path / "auth"
    folder.mkdir()
    address = onion.onion_address(onion.mint_seed())
    done = told(bento("client", "auth", "add", address, "--new", "--dir", str(folder), "--json"))
    path = folder / f"{address.removesuffix('.onion')}.auth_private"
    private = client_auth.parse_private(path.read_text(), address)
    assert client_auth.public_line(client_auth.public_of(private)) == done["public"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.tor
def test_a_box_that_setup_relay_put_up_can_be_locked_too(
    tor_network: Network, bento: Bento, short_path: Path, serve_on_socket: Callable[..., Path]
) -> None:
    relay = ["--control", str(tor_network.relays[1].control), "--state", str(short_path / "s"), "--json"]
    target = f"unix:{serve_on_socket(lambda stream: stream.sendall(b'here'))}"
    address = told(bento("setup-relay", *relay, "--target", target, "--yes"))["address"]
    reach = ["--network", str(tor_network.directory), "--timeout", CHECK_S]
    try:
        until(reached, lambda: bento("onion", "check", address, *reach))
        assert told(bento("onion", "auth", "add", "box", "alice", *relay))["applied"]
        until(refused("wants client authorisation"), lambda: bento("onion", "check", address, *reach))
        assert told(bento("onion", "auth", "revoke", "box", "--open", *relay))["applied"]
        until(reached, lambda: bento("onion", "check", address, *reach))
    finally:
        assert bento("setup-relay", *relay, "--undo", "--yes").returncode == 0


@pytest.mark.tor
@pytest.mark.sandbox
def test_a_box_lets_in_whom_it_knows(
    tor_network: Network, new_box: Callable[..., Any], operator: Operator, bento: Bento, tmp_path: Path
) -> None:
    """With the key it answers; without it, and after `revoke`, the client is told in a clear sentence."""
    running = new_box("--publish", "--control", str(tor_network.client.control))
    address, state = running.told["address"], ["--state", str(running.state)]
    reach = ["--box", address, "--network", str(tor_network.directory), "--timeout", CHECK_S]

    def hello() -> CompletedProcess[str]:
        return bento("-q", "client", "run", "hello", *reach)

    assert until(reached, hello).stdout
    key = tmp_path / "key"
    assert told(bento("onion", "auth", "add", "box", "alice", "-o", str(key), "--json", *state))["applied"]
    until(refused("wants client authorisation"), hello)
    try:
        told(operator("client", "auth", "add", address, f"@{key}", "--json"))
        until(reached, hello)
        told(bento("onion", "auth", "revoke", "box", "alice", "--json", *state))
        until(refused("does not accept the client authorisation key"), hello)
        # It stays locked after a restart: the file says so.
        running.kill()
        again = new_box("--publish", "--control", str(tor_network.client.control))
        assert again.told["address"] == address
        until(refused("authorisation"), hello)
    finally:
        operator("client", "auth", "remove", address)


def intro_hops(control: str) -> set[int]:
    """How many hops a tor's circuits to introduction points have."""
    with connect(Endpoint.parse(control)) as tor:
        lines = tor.get_info("circuit-status").splitlines()
    return {line.split()[2].count("$") for line in lines if "BUILT" in line and "PURPOSE=HS_SERVICE_INTRO" in line}


@pytest.mark.tor
@pytest.mark.sandbox
def test_a_box_that_need_not_hide(
    tor_network: Network, running_box: Callable[..., Any], bento: Bento, short_path: Path
) -> None:
    """Single-hop, on a tor of its own that ends with the box; and it is refused on a tor that hides its services."""
    short_path.chmod(0o711)  # tor's own user reaches the box's socket
    lines = tor_network.client.torrc.read_text().splitlines()
    leave = ("DataDirectory", "ControlSocket", "SocksPort", "Log ", "CookieAuth", "#", "__Owning")
    extra = short_path / "extra.torrc"
    extra.write_text("\n".join(line for line in lines if line and not line.startswith(leave)))
    config = f'single_hop_torrc = "{extra}"\nready = 0\n'
    running = running_box(short_path / "s", "--publish", "--single-hop", config=config)
    try:
        address = running.told["address"]
        network = ["--network", str(tor_network.directory)]
        done = until(reached, lambda: bento("onion", "check", address, "--json", *network))
        assert told(done)["connected_s"] > 0
        control = f"unix:{short_path}/s/single-hop/control"
        assert intro_hops(control) == {1}, "its circuits to introduction points"
        shown = told(bento("onion", "show", "box", "--state", str(short_path / "s"), "--control", control, "--json"))
        assert shown["single_hop"] is True
        done = bento("-q", "client", "run", "hello", "--box", address, *network)
        assert done.returncode == 0, done.stderr
        words = ["onion", "create", "hidden", "--target", "127.0.0.1:80", "--state", str(short_path / "o")]
        single = bento(*words, "--control", control)
        assert single.returncode == 4 and "hides nobody" in single.stderr, single.stderr
    finally:
        assert running.stop() == 0
    with pytest.raises(TorError):
        connect(Endpoint.parse(control), timeout_s=5)
    refused = bento(
        "serve", "--publish", "--single-hop", "--control", str(tor_network.client.control),
        "--state", str(short_path / "t"),
    )  # fmt: skip
    assert refused.returncode == 4 and "hides its services" in refused.stderr, refused.stderr


def test_a_key_is_revoked_on_the_tor_that_has_the_service(
    bento: Bento, lone_tor: LaunchedTor, short_path: Path
) -> None:
    """Named by nobody, and with no descriptor yet: what tor has would be published with eve's key all the same."""
    place, eve = services.Place(short_path / "state"), client_auth.mint_pair()
    access = client_auth.Access().adding("eve", eve.public)
    place.store(services.Service("vault", 80, "127.0.0.1:1", control=str(lone_tor.control)))
    client_auth.store_access(place.access("vault"), access)
    seed = onion.load_or_mint_seed(place.seed("vault"))
    key, flags = base64.b64encode(onion.expanded_key(seed)).decode(), "Flags=Detach,V3Auth"
    with lone_tor.connect(timeout_s=20) as tor:
        tor.ask(f"ADD_ONION ED25519-V3:{key} {flags} Port=80,127.0.0.1:1 ClientAuthV3={access.keys['eve']}")
        assert services.detached(tor) == (onion.onion_address(seed),)
        done = bento("onion", "auth", "revoke", "vault", "eve", "--state", str(place.state), "--timeout", "2")
        # This tor has no network, so no directory confirms the new one: it is down, and no more open to eve.
        assert done.returncode == 0 and "the service is down now" in done.stderr, done.stderr
        assert services.detached(tor) == ()
