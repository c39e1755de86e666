"""The class `tor`, through a real tor of a private network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bento_tor.controller import onion
from bento_tor.controller.streams import check_reachable
from bento_tor.egress.broker import Settings
from bento_tor.egress.socks5 import Reply
from bento_tor.network import Network

pytestmark = pytest.mark.tor


@pytest.fixture
def greeter(serve_on_socket: Callable[..., Path]) -> Path:
    """A unix socket that says hello."""
    return serve_on_socket(lambda stream: stream.sendall(b"hello"))


@pytest.fixture
def tor_broker(egress, tor_network: Network) -> Iterator:
    settings = Settings(offers=("tor",), tor_socks=str(tor_network.client.socks))
    with egress.start_broker(None, policy=None, settings=settings) as broker:
        yield broker


def isolation_words(tor_network) -> set[str]:
    """The broker's words among the SOCKS user names of the client's circuits. Other tests have left some of theirs."""
    with tor_network.connect(tor_network.client) as tor:
        words = tor.get_info("circuit-status").split()
    return {word for word in words if word.startswith("SOCKS_USERNAME=") and len(word) == len('SOCKS_USERNAME=""') + 32}


def test_an_onion_is_reached_and_each_session_has_circuits_of_its_own(egress, tor_network, tor_broker, greeter):
    seed = onion.mint_seed()
    with tor_network.connect(tor_network.relays[0]) as host:
        address = onion.publish(host, seed, 80, f"unix:{greeter}", timeout_s=60, report=lambda text: None)
        check_reachable(tor_network.client.socks, address, 80, timeout_s=60)
        before = isolation_words(tor_network)
        for _ in range(2):
            code, sock = egress.ask(tor_broker.session("tor"), address, 80, timeout_s=60)
            with sock:
                assert (code, egress.exactly(sock, 5)) == (0, b"hello")
    assert len(isolation_words(tor_network) - before) == 2


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "192.168.1.1", "localhost", "127.1", "::1"]
)
def test_what_is_inside_is_not_even_asked_of_tor(egress, tor_broker, host):
    assert egress.code(tor_broker.session("tor"), host, 80) == Reply.POLICY


def test_tors_own_answers_pass_through(egress, tor_broker):
    # Extended errors: an address that is none.
    assert egress.code(tor_broker.session("tor"), "a" * 56 + ".onion", 80) in {0xF6, Reply.HOST, Reply.FAILED}


def test_a_tor_that_is_not_there_is_a_refusal(egress):
    settings = Settings(offers=("tor",), tor_socks="/nowhere/socks")
    with egress.start_broker(None, settings=settings) as broker:
        assert egress.code(broker.session("tor"), "web.example.com", 80) == Reply.FAILED
