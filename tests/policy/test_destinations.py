"""Never-list, operator's lines, exit policy, names: what may be reached, and what may be asked for."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.errors import ConfigError
from bento_tor.policy.destinations import (
    Destinations,
    is_named,
    maybe_name,
    parse_operator,
)
from bento_tor.policy.exit_policy import parse

OPEN = parse("accept *:*\naccept6 *:*")


NEVER = """
0.0.0.0 10.1.2.3 100.100.100.200 127.0.0.1 169.254.169.254 172.31.255.255 192.0.0.192 192.0.2.80 192.88.99.1
192.168.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 255.255.255.255 168.63.129.16 :: ::1 ::7f00:1
::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::1 64:ff9b:1::1 100::1 2001::1 2001:1ff:: 2001:db8::1 2002:7f00:1::
fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 2a00::1%eth0
"""
PUBLIC = "8.8.8.8 100.128.0.1 172.32.0.1 223.255.255.255 ::ffff:8.8.8.8 2001:200::1 2a00::1"


@pytest.mark.parametrize("address", NEVER.split())
def test_never(address):
    assert not Destinations(OPEN).accepts(ip_address(address), 80)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_the_rest(address):
    assert Destinations(OPEN).accepts(ip_address(address), 80)


def test_an_unknown_policy_accepts_nothing():
    assert not Destinations(None).accepts(ip_address("8.8.8.8"), 80)
    assert not Destinations(None).may_accept(80)


def test_own_addresses_are_never_reached_in_any_form():
    rules = Destinations(
        OPEN, own=frozenset({ip_address("8.8.8.8"), ip_address("::ffff:9.9.9.9"), ip_address("2a00::1")})
    )
    for text in ("8.8.8.8", "::ffff:8.8.8.8", "9.9.9.9", "2a00::1"):
        assert not rules.accepts(ip_address(text), 80)


def test_documentation_addresses_open_for_a_test_network_and_nothing_else_does():
    rules = Destinations(OPEN, documentation=True)
    assert all(
        rules.accepts(ip_address(text), 80) for text in ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")
    )
    assert not any(rules.accepts(ip_address(text), 80) for text in ("127.0.0.1", "10.0.0.1", "::1", "192.0.0.1"))


def test_operator_lines_narrow_in_order():
    rules = Destinations(
        parse("accept *:80"), parse_operator(["accept 8.8.8.8:80", "reject 8.8.8.0/24", "accept *:22"])
    )
    judged = {text: rules.accepts(ip_address(text), 80) for text in ("8.8.8.8", "8.8.8.9", "9.9.9.9")}
    assert judged == {"8.8.8.8": True, "8.8.8.9": False, "9.9.9.9": True}
    assert not rules.accepts(ip_address("9.9.9.9"), 22)


def test_an_operators_star_is_both_families():
    rules = Destinations(OPEN, parse_operator(["reject *:25", "reject6 *:26"]))
    tried = [rules.accepts(ip_address(text), port) for port in (25, 26) for text in ("8.8.8.8", "2a00::1")]
    assert tried == [False, False, True, False]


@pytest.mark.parametrize(
    "line",
    ["", "reject", "reject private:*", "reject example.com:80", "reject *:0", "reject *:9-8", "reject 2a00::1:80",
     "reject [::ffff:1.2.3.4]:80", "reject [2a00::1%eth0]:80", "accept6 1.2.3.4:80", "reject *:80; flush ruleset",
     "reject *:80\nreject *:81", "block 1.2.3.4", "reject 1.2.3.4/33"],
)  # fmt: skip
def test_an_operators_line_that_is_none(line):
    with pytest.raises(ConfigError, match="egress line"):
        parse_operator([line])


@given(st.text())
def test_no_text_is_anything_but_a_line_or_refused(text):
    with suppress(ConfigError):
        parse_operator([text])


@pytest.mark.parametrize(
    "text",
    ["", ".", "localhost", "host", "127.1", "0x7f.1", "2130706433", "1.2.3.4", "a..b", "-a.com", "a-.com", "a.b-",
     "a.local", "a.localhost", "a.internal", "a.home.arpa", "a.lan", "ä.example.com", "a b.com", "a.com\n",
     "a" * 64 + ".com", "a." * 127 + "com", "[::1]", "a.1", "a.0x1", "x.com/", "x.com:80", "user@x.com", "a%00.com"],
)  # fmt: skip
def test_a_name_that_is_none_of_the_internets(text):
    assert maybe_name(text) is None


def test_a_name_has_one_form():
    assert maybe_name("WEB.Example.COM.") == "web.example.com"
    assert maybe_name("_dmarc.example.com") == "_dmarc.example.com"


@pytest.mark.parametrize(
    ("hosts", "host", "named"),
    [
        ((), "anything.example.com", True),
        (("example.com",), "EXAMPLE.com.", True),
        (("example.com",), "www.example.com", False),
        (("example.com",), "example.com.evil.org", False),
        (("bücher.example",), "xn--bcher-kva.example", True),
        (("2a00:0::1",), "2a00::1", True),
        (("8.8.8.8",), "::ffff:8.8.8.8", True),
        (("8.8.8.8",), "8.8.8.9", False),
        (("",), "x.com", False),
    ],
)
def test_hosts_of_a_manifest(hosts, host, named):
    assert is_named(hosts, host) is named
