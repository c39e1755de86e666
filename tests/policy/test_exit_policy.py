"""An exit policy as tor states it: strict, first match, default deny."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.errors import ConfigError
from bento_tor.policy.exit_policy import accepts, parse

POLICY = (
    "reject 10.0.0.0/8:*\naccept 192.0.2.80:4444\naccept *:80\naccept6 [2001:db8::]/32:443-444\nreject *:*\nreject6 *:*"
)


@pytest.mark.parametrize(
    ("address", "port", "accepted"),
    [
        ("192.0.2.80", 4444, True),
        ("192.0.2.80", 4445, False),
        ("192.0.2.81", 4444, False),
        ("8.8.8.8", 80, True),
        ("8.8.8.8", 81, False),
        ("10.1.2.3", 80, False),
        ("::ffff:10.1.2.3", 80, False),
        ("::ffff:8.8.8.8", 80, True),
        ("2001:db8::1", 443, True),
        ("2001:db8::1", 445, False),
        ("2001:db9::1", 443, False),
        ("::1", 80, False),
    ],
)
def test_the_first_rule_decides(address: str, port: int, accepted: bool) -> None:
    assert accepts(parse(POLICY), ip_address(address), port) is accepted


def test_a_rule_without_a_6_says_nothing_of_ipv6() -> None:
    """With torrc's grammar `*` would mean both, and open a hole."""
    assert not accepts(parse("accept *:*"), ip_address("2001:db8::1"), 80)


def test_nothing_is_accepted_by_an_empty_policy() -> None:
    assert not accepts(parse(""), ip_address("8.8.8.8"), 80)


@pytest.mark.parametrize(
    "line",
    [
        "accept *",
        "accept *:0",
        "accept *:70000",
        "accept *:9-8",
        "allow *:80",
        "accept private:*",
        "accept 300.1.1.1:80",
        "accept [::1]:80",
        "accept6 1.2.3.4:80",
        "accept 1.2.3.4/33:80",
        "accept *:80 ",
        " accept *:80",
        "accept *:80, reject *:*",
        "ACCEPT *:80",
        "accept *:٣",
    ],
)
def test_a_rule_that_does_not_parse_makes_the_policy_unusable(line: str) -> None:
    with pytest.raises(ConfigError):
        parse(f"accept *:80\n{line}")


@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with suppress(ConfigError):
        parse(text)
