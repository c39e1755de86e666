"""Tors of our own that do not start, or do not get on."""

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor, complaints, wait_bootstrapped
from bento_tor.controller.policy import exit_policy, maybe_exit_policy
from bento_tor.errors import TorError, TorTimeout

Starter = Callable[..., LaunchedTor]
pytestmark = pytest.mark.tor


def test_an_unknown_option_is_an_error_in_tors_words(start_lone_tor: Starter) -> None:
    with pytest.raises(TorError, match=r"tor lone died: .*Unknown option 'NoSuchOption'") as error:
        start_lone_tor("NoSuchOption 1").connect(timeout_s=20)
    assert error.value.exit_code == 4


def test_a_taken_port_is_named(start_lone_tor: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TorError, match=f"127.0.0.1:{port}.*Address already in use") as error:
            start_lone_tor(f"ControlPort 127.0.0.1:{port}").connect(timeout_s=20)
    assert "port" in error.value.hint


def test_a_tor_without_progress_says_where_it_stands(start_lone_tor: Starter) -> None:
    started = start_lone_tor()
    with started.connect(timeout_s=20) as tor, pytest.raises(TorTimeout, match=r"at 0 % \(starting\)") as error:
        wait_bootstrapped(started, tor, timeout_s=0.5)
    assert error.value.hint
    assert error.value.exit_code == 5


def test_a_tor_that_never_opens_its_port_is_given_up(lone_tor: LaunchedTor) -> None:
    elsewhere = dataclasses.replace(lone_tor, control=Endpoint.unix(lone_tor.log.parent / "elsewhere"))
    with pytest.raises(TorTimeout, match="did not open its control port"):
        elsewhere.connect(timeout_s=0.5)


def test_a_tor_that_is_no_relay_has_no_policy(lone_tor: LaunchedTor) -> None:
    with lone_tor.connect(timeout_s=20) as tor, pytest.raises(TorError, match="no relay"):
        maybe_exit_policy(tor)


def test_the_policy_of_a_relay_without_a_descriptor_is_unknown_not_empty(start_lone_tor: Starter) -> None:
    started = start_lone_tor("ORPort 192.0.2.1:9 NoListen", "ORPort 127.0.0.1:9999 NoAdvertise", "ExitRelay 0")
    with started.connect(timeout_s=20) as tor:
        assert maybe_exit_policy(tor) is None
        with pytest.raises(TorTimeout, match="did not state its exit policy"):
            exit_policy(tor, timeout_s=0.3)


def test_complaints_are_the_last_warnings_without_noise(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert complaints(log) == ()
    log.write_text(
        "Nov 21 22:00:00.000 [warn] You are running Tor as root. You don't need to, and you probably shouldn't.\n"
        "Nov 21 22:00:00.000 [notice] Fine\n"
        "Nov 21 22:00:01.000 [warn] Twice\n"
        "Nov 21 22:00:02.000 [warn] Twice\n"
        "Nov 21 22:00:03.000 [err] The end\n"
    )
    assert complaints(log) == ("Twice", "The end")
