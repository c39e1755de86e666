"""What tests share: one real private Tor network per run, and a lone tor for what needs no network."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor, launch
from bento_tor.network import Network, NetworkSettings, down, up


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets; gone after the test."""
    with tempfile.TemporaryDirectory(prefix="bento-t-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def tor_network() -> Iterator[Network]:
    """A real network of the default size, shared by all tests of the run: leave it as you found it."""
    base = Path(tempfile.mkdtemp(prefix="bento-net-"))
    try:
        yield up(NetworkSettings(), base / "network", owner_pid=os.getpid())
    finally:
        down(base / "network")
        shutil.rmtree(base)


@pytest.fixture
def start_lone_tor(short_path: Path) -> Iterator[Callable[..., LaunchedTor]]:
    """Start a tor that talks to nobody, with a control socket, a cookie, and the given torrc lines. One per
    test."""
    started: list[LaunchedTor] = []

    def start(*lines: str) -> LaunchedTor:
        control = Endpoint.unix(short_path / "control")
        options = [f"DataDirectory {short_path / 'data'}", f"ControlSocket {control.path}", "CookieAuthentication 1"]
        torrc, defaults = short_path / "torrc", short_path / "defaults"
        torrc.write_text("\n".join([*options, "DisableNetwork 1", "SocksPort 0", *lines, ""]))
        defaults.touch()
        started.append(launch("lone", torrc, control=control, log=short_path / "log", defaults=defaults))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def lone_tor(start_lone_tor: Callable[..., LaunchedTor]) -> LaunchedTor:
    """Such a tor, with nothing special."""
    return start_lone_tor()
