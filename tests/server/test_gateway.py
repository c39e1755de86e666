"""Where functions get no circuits at will: beside any onion service that keeps the box's place secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_tor.controller.launch import LaunchedTor
from bento_tor.controller.relay import SetUp, Wanted
from bento_tor.controller.services import Place, Service
from bento_tor.gate.control import Control
from bento_tor.server import gateway
from bento_tor.server.settings import BoxConfig
from bento_tor.server.state import write_relay

TARGET = "unix:/x/box.sock"


@pytest.mark.parametrize(
    ("config", "hides"),
    [
        (BoxConfig(), False),
        (BoxConfig(publish=True), True),
        (BoxConfig(publish=True, single_hop=True), False),
    ],
)
def test_by_its_settings(tmp_path: Path, config: BoxConfig, hides: bool) -> None:
    assert gateway._hides(config, tmp_path) is hides


@pytest.mark.parametrize(("exit_port", "hides"), [(None, True), (23686, False)])
def test_by_what_setup_relay_did(tmp_path: Path, exit_port: int | None, hides: bool) -> None:
    write_relay(tmp_path, SetUp("a.onion", 80, "unix:/c", Wanted(TARGET, exit_port=exit_port)))
    assert gateway._hides(BoxConfig(), tmp_path) is hides


@pytest.mark.parametrize("single_hop", [False, True])
def test_by_another_service_of_the_same_box(tmp_path: Path, single_hop: bool) -> None:
    Place(tmp_path).store(Service("web", 80, TARGET, single_hop=single_hop))
    assert gateway._hides(BoxConfig(publish=True, single_hop=True), tmp_path) is not single_hop


def test_by_a_service_that_comes_to_that_tor_later(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor:
        control = Control(lone_tor.control, lambda address: None, lambda: None)
        try:
            assert not control.has_services()
            tor.ask("ADD_ONION NEW:ED25519-V3 Flags=DiscardPK,Detach Port=80,127.0.0.1:1")
            assert control.has_services()
        finally:
            control.close()
