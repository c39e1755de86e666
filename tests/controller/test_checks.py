"""`doctor`'s tor half, on real tors: what is well is said to be, and each fault is found by its own name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_tor.controller import checks
from bento_tor.controller.checks import Place, check
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.findings import Finding
from bento_tor.controller.launch import LaunchedTor
from bento_tor.network import Network


@pytest.fixture
def started_tor(lone_tor: LaunchedTor) -> LaunchedTor:
    """One that talks to nobody, and takes commands."""
    lone_tor.connect(timeout_s=60).close()
    return lone_tor


def grades(found: tuple[Finding, ...], about: str) -> list[str]:
    return [finding.grade for finding in found if finding.about == about]


def words(found: tuple[Finding, ...], about: str) -> str:
    return "; ".join(f"{finding.words} ({finding.hint})" for finding in found if finding.about == about)


@pytest.mark.tor
def test_a_relay_that_works_has_no_fault(tor_network: Network, eventually: Callable[..., None]) -> None:
    place = Place(tor_network.exits[0].control, exit_egress=True)
    # Consensuses live for seconds here: on a busy machine there may be none for a moment.
    eventually(lambda: grades(check(place), "clock") == ["ok"], 40)
    found = check(place)
    assert not [finding for finding in found if finding.grade == "no"], found
    assert {"control", "version", "bootstrap", "clock", "ports", "relay", "policy"} <= {each.about for each in found}
    assert "is in the consensus" in words(found, "relay")
    assert "exits to the web are accepted" in words(found, "policy")
    assert "ORPort at 127.0.0.1" in words(found, "ports")


@pytest.mark.tor
def test_a_policy_that_lets_nothing_out_is_told_to_who_offers_that(tor_network: Network) -> None:
    (no_exit,) = tor_network.relays[:1]
    assert grades(check(Place(no_exit.control, exit_egress=True)), "policy") == ["warn"]
    assert grades(check(Place(no_exit.control)), "policy") == ["ok"]
    assert "no relay" in words(check(Place(tor_network.client.control, exit_egress=True)), "policy")


@pytest.mark.tor
@pytest.mark.parametrize(("ahead_s", "fault"), [(-7 * 86400, "behind the consensus"), (7 * 86400, "consensus ended")])
def test_a_wrong_clock_is_found(
    tor_network: Network, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch, ahead_s: int, fault: str
) -> None:
    control = tor_network.client.control
    eventually(lambda: grades(check(Place(control)), "clock") == ["ok"], 40)
    now = time.time
    monkeypatch.setattr(checks.time, "time", lambda: now() + ahead_s)
    found = check(Place(control))
    assert grades(found, "clock") == ["no"] and fault in words(found, "clock")


def test_a_tor_that_is_not_there_is_one_finding(short_path: Path) -> None:
    (found,) = check(Place(Endpoint.unix(short_path / "none")))
    assert (found.about, found.grade) == ("control", "no") and "nothing there" in found.words and found.hint


def test_a_tor_that_cannot_bootstrap_is_told_with_the_usual_reason(started_tor: LaunchedTor) -> None:
    found = check(Place(started_tor.control))
    assert grades(found, "bootstrap") == ["no"] and words(found, "bootstrap").startswith("0 %")
    assert grades(found, "clock") == ["warn"], "there is no consensus"
    assert not grades(found, "relay")


def test_a_cookie_that_everybody_may_read_is_found(started_tor: LaunchedTor, short_path: Path) -> None:
    cookie = short_path / "data" / "control_auth_cookie"
    assert grades(check(Place(started_tor.control)), "control") == ["ok", "ok"]
    cookie.chmod(0o644)
    found = check(Place(started_tor.control))
    assert grades(found, "control") == ["ok", "no"] and f"chmod o-r {cookie}" in words(found, "control")
    cookie.chmod(0o640)
    assert "the group" in words(check(Place(started_tor.control)), "control")


@pytest.mark.parametrize(
    ("listener", "private"),
    [
        ("127.0.0.1:9051", True),
        ("[::1]:9051", True),
        ("unix:/run/tor/control", True),
        ("0.0.0.0:9051", False),
        ("[::]:9051", False),
        ("192.168.1.2:9051", False),
        ("203.0.113.7:9051", False),
        ("nonsense", False),
    ],
)
def test_a_port_that_the_network_can_reach_is_found(listener: str, private: bool) -> None:
    """Of the judge alone: a test opens no port to the network."""
    assert checks._is_private(listener) is private
