"""A box's defences at the onion, with real tors: proof of work, a limit on streams, and circuits by their names."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from stem.descriptor.hidden_service import HiddenServiceDescriptorV3

from bento_tor.client import connect, parse
from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.onion import Defences, load_seed, maybe_place_key, mint_seed, publish, wait_uploaded
from bento_tor.errors import BentoError, TorError
from bento_tor.network import Network
from bento_tor.server.state import onion_seed

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

WORD = parse("f", "def f(): return 'x'")


def inner_layer(network: Network, address: str) -> str:
    """What clients read of the service: its descriptor, fetched by the network's client, and opened."""
    name = address.removesuffix(".onion")
    with network.connect(network.client) as tor, tor.events("HS_DESC") as events:
        tor.ask(f"HSFETCH {name}")
        for event in events.until(time.monotonic() + 30):
            if isinstance(event, HsDescEvent) and event.address == name and event.action == "RECEIVED":
                break
        text = "\n".join(tor.ask(f"GETINFO hs/client/desc/id/{name}").lines)
    descriptor = text[text.index("hs-descriptor") :].removesuffix("\nOK")
    return str(HiddenServiceDescriptorV3.from_str(descriptor).decrypt(name))


def test_one_line_of_settings_asks_clients_for_work(tor_network: Network, new_box: Callable) -> None:
    settings = "pow = true\npow_rate = 5\nmax_streams = 3\n"
    running = new_box("--publish", "--control", str(tor_network.client.control), config=settings)
    address, socks = running.told["address"], str(tor_network.client.socks)
    with connect(address, socks=socks, timeout_s=60) as box:
        assert list(box.run(WORD)) == [b"x"]
    assert "pow-params v1" in inner_layer(tor_network, address)
    # All by one circuit: tor lets in no more than may be.
    with ExitStack() as stack, pytest.raises(BentoError):
        for _ in range(5):
            box = stack.enter_context(connect(address, socks=socks, identity="one", timeout_s=10))
            box.ping()


def test_a_defence_that_tor_does_not_know_is_an_error(tor_network: Network) -> None:
    with tor_network.connect(tor_network.client) as tor, pytest.raises(TorError):
        publish(tor, mint_seed(), 80, "127.0.0.1:1", timeout_s=10, defences=Defences(max_streams=70_000))


def test_circuits_that_tor_names_share_a_quota(tor_network: Network, new_box: Callable, tmp_path: Path) -> None:
    running = new_box(config="circuit_ids = true\nclients_per_circuit = 2\n")
    relay, socks = tor_network.relays[0], str(tor_network.client.socks)
    service, address = tmp_path / "service", running.told["address"]
    assert maybe_place_key(service, load_seed(onion_seed(running.state)))
    with tor_network.connect(relay) as tor:
        target = f'HiddenServicePort="80 {running.address}"'
        tor.ask(f"SETCONF HiddenServiceDir={service} {target} HiddenServiceExportCircuitID=haproxy")
        try:
            wait_uploaded(tor, address, timeout_s=60)
            with ExitStack() as stack:
                boxes = [connect(address, socks=socks, identity="one", timeout_s=60) for _ in range(3)]
                for box in boxes[:2]:
                    assert list(stack.enter_context(box).run(WORD)) == [b"x"]
                with pytest.raises(BentoError, match="of one circuit"):
                    stack.enter_context(boxes[2]).ping()
                other = stack.enter_context(connect(address, socks=socks, identity="other", timeout_s=60))
                assert list(other.run(WORD)) == [b"x"]
        finally:
            tor.ask("RESETCONF HiddenServiceDir")
