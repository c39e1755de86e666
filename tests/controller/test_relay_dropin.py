"""The drop-in as text: what it holds for which wishes, the lines that include it, what is refused, what is advised."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.controller.advice import advise, lost_by_reload
from bento_tor.controller.dropin import includes_it, is_included, maybe_owner, render, with_include, without_include
from bento_tor.controller.relay import RelayPart, Wanted
from bento_tor.controller.settings import Settings, changes, differences
from bento_tor.errors import ConfigError

DROPIN = Path("/etc/tor/torrc.d/50-bento.conf")
STATE = "/var/lib/bento-tor/box"
DATA = ("DataDirectory", "/var/lib/tor")
RELAY = RelayPart("x", "9001")


def wanted(exit_port: int | None = None, relay: RelayPart | None = None) -> Wanted:
    return Wanted(f"unix:{STATE}/box.sock", 80, exit_port, STATE, relay)


def own(*lines: tuple[str, str]) -> Settings:
    return Settings((DATA, *lines))


def options(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if line and not line.startswith("#")]


SERVICE = ['HiddenServiceDir "/var/lib/tor/bento-box"', f"HiddenServicePort 80 unix:{STATE}/box.sock"]
OR = ("ORPort", "9001")
BOX = "ExitPolicy accept 192.0.2.80:4444"
NAMED = ["Nickname x", "ORPort 9001"]


@pytest.mark.parametrize(
    ("wishes", "settings", "lines"),
    [
        (wanted(), own(), []),
        (wanted(), own(OR), []),
        (wanted(relay=RELAY), own(), [*NAMED, "ExitRelay 0"]),
        (wanted(4444, RELAY), own(), [*NAMED, "ExitRelay 1", BOX, "ExitPolicy reject *:*"]),
        (wanted(relay=RelayPart("x", "9001", exit=True)), own(), [*NAMED, "ExitRelay 1", "ReducedExitPolicy 1"]),
        (
            wanted(4444, RelayPart("x", "9001", exit=True)),
            own(),
            [*NAMED, "ExitRelay 1", "ReducedExitPolicy 1", BOX],
        ),
        # A relay already: as it is an exit or not, so it stays, but for the box.
        (wanted(4444), own(OR), ["ExitRelay 1", BOX, "ExitPolicy reject *:*"]),
        (wanted(4444), own(OR, ("ExitRelay", "1")), [BOX]),
        (wanted(4444), own(OR, ("ExitPolicy", "accept *:80")), ["ExitRelay 1", BOX]),
        (wanted(4444), own(OR, ("ReducedExitPolicy", "1")), ["ExitRelay 1", BOX]),
        (
            wanted(relay=RelayPart("x", "9001", 'me "at" \\home #1', "10 MBytes", ("A" * 40, "B" * 40))),
            own(),
            [
                *NAMED,
                'ContactInfo "me \\"at\\" \\\\home #1"',
                "BandwidthRate 10 MBytes",
                "BandwidthBurst 10 MBytes",
                f"MyFamily {'A' * 40},{'B' * 40}",
                "ExitRelay 0",
            ],
        ),
    ],
)
def test_the_lines_for_a_wish(wishes: Wanted, settings: Settings, lines: list[str]) -> None:
    text = render(wishes, settings)
    assert options(text) == [*lines, *SERVICE]
    assert maybe_owner(text) == STATE


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a relay already"):
        render(wanted(relay=RELAY), own(OR))
    with pytest.raises(ConfigError, match="is no relay"):
        render(wanted(4444), own())
    with pytest.raises(ConfigError, match="ExitRelay 0"):
        render(wanted(4444), own(OR, ("ExitRelay", "0")))


@given(st.text(max_size=60))
def test_no_contact_brings_a_line_of_its_own(contact: str) -> None:
    try:
        text = render(wanted(relay=RelayPart("x", "9001", contact)), own())
    except ConfigError:
        return
    lines = options(text)
    assert lines[:2] == NAMED and lines[-2:] == SERVICE and len(lines) == (6 if contact else 5)


@given(st.binary(max_size=400))
def test_taking_the_include_out_leaves_every_byte(torrc: bytes) -> None:
    both = with_include(torrc, DROPIN)
    assert is_included(both, DROPIN) and with_include(both, DROPIN) == both
    assert without_include(both, DROPIN) == torrc
    assert includes_it(both, DROPIN) is includes_it(torrc, DROPIN), "our own line is not the operator's"


@pytest.mark.parametrize(
    ("line", "covers"),
    [
        ("%include /etc/tor/torrc.d/*.conf", True),
        ("%include /etc/tor/torrc.d", True),
        ('  %include "/etc/tor/torrc.d/"', True),
        ("%include /etc/tor/torrc.d/10-mine.conf", False),
        ("#%include /etc/tor/torrc.d/*.conf", False),
        ("%include /etc/torrc.d/*.conf", False),
        ("%include /etc/tor/*.conf", False),  # glob(3): a star ends at a slash
        ("%include /etc/*", False),
        ("%include /etc/tor/*.d", True),  # of a folder tor takes every file
    ],
)
def test_an_include_of_the_operators_own_is_seen(line: str, covers: bool) -> None:
    assert includes_it(f"SocksPort 0\n{line}\n".encode(), DROPIN) is covers


def test_changes_are_whole_groups() -> None:
    service = ("HiddenServiceDir", "/x")
    now, then = own(("Nickname", "y"), OR), own(("Nickname", "x"), OR, service)
    assert differences(now, then) == ("Nickname", "HiddenServiceDir")
    assert changes(now, then) == (("Nickname", "x"), service)
    assert changes(then, own()) == (("Nickname", None), ("ORPort", None), ("HiddenServiceDir", None))
    assert lost_by_reload(now, now) == () and "Nickname" in lost_by_reload(now, then)[0]


@pytest.mark.parametrize(
    ("settings", "version", "words"),
    [
        (own(OR), "0.4.9.11", "onion service on a public relay"),
        (own(OR), "0.4.9.11", "under one kernel"),
        (own(OR), "0.4.9.11", "no ContactInfo"),
        (own(OR, ("ExitRelay", "0"), ("ExitPolicy", "accept *:80")), "0.4.9.11", "ignores that policy"),
        (own(), "0.4.8.21 (git-1234)", "older than 0.4.9.11"),
        (own(OR, ("RelayBandwidthRate", "1048576")), "0.4.9.11", "RelayBandwidthRate counts relayed bytes only"),
        (own(OR, ("BandwidthRate", "1048576")), "0.4.9.11", "does not go through tor"),
    ],
)
def test_what_operators_regret_is_said(settings: Settings, version: str, words: str) -> None:
    assert any(words in text for text in advise(settings, settings, wanted(), version))


def test_a_plain_client_hears_nothing_and_a_test_relay_little() -> None:
    assert advise(own(), own(), wanted(), "0.4.9.11") == ()
    testing = own(OR, ("TestingTorNetwork", "1"))
    assert advise(testing, testing, wanted(), "0.4.9.11") == ()
    hidden = Wanted("unix:/home/me/box.sock", state="/home/me")
    assert "ProtectHome" in advise(own(), own(), hidden, "0.4.9.11")[0]
