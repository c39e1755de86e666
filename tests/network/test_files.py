"""What a network keeps on disk: its state, and the torrcs that tor itself accepts."""

import os
import socket
import subprocess
from pathlib import Path

import jinja2
import pytest

from bento_tor.controller.processes import ProcessId, find_program
from bento_tor.errors import ConfigError
from bento_tor.network import Network, NetworkSettings, torrc
from bento_tor.network import ports as port_module
from bento_tor.network import state as states
from bento_tor.network.plan import Node, Role, plan_nodes, plan_schedule, ports_needed
from bento_tor.network.ports import allocate_ports
from bento_tor.network.state import State
from bento_tor.network.torrc import Shared, render_bandwidths, render_torrc

AUTHORITY = f"a1 orport=5 no-v2 v3ident={'A' * 40} 127.0.0.1:6 {'B' * 40}"


def state_in(place: Path) -> State:
    settings = NetworkSettings()
    return State(settings, plan_nodes(settings, place, range(5000, 5000 + ports_needed(settings))), created=(place,))


def test_the_state_comes_back_as_it_was(short_path: Path) -> None:
    state = state_in(short_path)
    states.claim(short_path, state)
    assert states.load(short_path) == state
    with pytest.raises(ConfigError, match="already"):
        states.claim(short_path, state)
    running = Network.load(short_path)
    assert running.client.name == "c1"
    assert [node.name for node in running.exits] == ["r4", "r5"]
    assert running.maybe_process(running.client) is None
    with pytest.raises(ConfigError, match="no node is called 'x'"):
        running.node("x")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": 1}', "\xff"])
def test_a_damaged_state_is_told(short_path: Path, text: str) -> None:
    (short_path / "network.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="not what bento-tor wrote"):
        Network.load(short_path)


def test_a_directory_without_a_network(short_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no network") as error:
        Network.load(short_path / "nowhere")
    assert "network up" in error.value.hint


def test_adopting_a_stranger_or_a_foreign_directory_is_refused(short_path: Path) -> None:
    states.claim(short_path, state_in(short_path))
    running = Network.load(short_path)
    with pytest.raises(ConfigError, match="is not inside"):
        running.adopt("box", os.getpid(), directory=Path("/tmp"))
    running.adopt("box", os.getpid(), directory=short_path / "box")
    assert [extra.name for extra in Network.load(short_path).extras] == ["box"]
    assert isinstance(Network.load(short_path).extras[0].process, ProcessId)


def test_ports_are_free_different_and_below_the_ephemeral_range() -> None:
    ports = allocate_ports(50)
    assert len(set(ports)) == 50
    lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < lowest_ephemeral
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_taken_port_is_not_given_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not port_module._is_free(taken.getsockname()[1])


def node_of(role: Role, place: Path) -> Node:
    return Node("x1", role, place, or_port=5001, dir_port=5002, socks_port=5003)


@pytest.mark.tor
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("interval_s", [10, 20, 60])
def test_tor_accepts_each_torrc(role: Role, interval_s: int, short_path: Path) -> None:
    schedule = plan_schedule(NetworkSettings(voting_interval_s=interval_s), 1234567.8)
    node = node_of(role, short_path / "a b")
    node.directory.mkdir(mode=0o700)
    bandwidths = short_path / "bandwidths"
    bandwidths.write_text(render_bandwidths(["A" * 40], 0))
    text = render_torrc(node, Shared((AUTHORITY,), schedule, bandwidths, owner_pid=1))
    code, said = verify(text, short_path)
    assert code == 0, said
    code, said = verify(text + "NoSuchOption 1\n", short_path)
    assert code == 1
    assert "Unknown option 'NoSuchOption'" in said


@pytest.mark.parametrize("role", list(Role))
def test_a_value_that_is_missing_is_an_error(role: Role) -> None:
    with pytest.raises(jinja2.UndefinedError):
        torrc._ENVIRONMENT.get_template(f"{role}.torrc").render(shared=None)


def test_every_odd_line_has_a_reason(short_path: Path) -> None:
    """Each paragraph of a torrc that sets a Testing option says why."""
    schedule = plan_schedule(NetworkSettings(), 0)
    text = render_torrc(node_of(Role.AUTHORITY, short_path), Shared((AUTHORITY,), schedule, short_path))
    for paragraph in text.split("\n\n"):
        if "\nTesting" in f"\n{paragraph}":
            assert "#" in paragraph


def verify(torrc: str, place: Path) -> tuple[int, str]:
    (place / "torrc").write_text(torrc)
    (place / "defaults").touch()
    argv = [find_program("tor", "tor"), "--defaults-torrc", str(place / "defaults"), "-f", str(place / "torrc")]
    done = subprocess.run([*argv, "--verify-config"], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout
