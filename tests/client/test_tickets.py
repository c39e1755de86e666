"""Tickets: what one person passes to another comes back whole, or not at all."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.client import tickets
from bento_tor.client.tickets import Ticket
from bento_tor.errors import ConfigError


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["invocation", "session", "shutdown"]))
def test_a_ticket_comes_back(token: bytes, role: tickets.Role) -> None:
    for box in ("a" * 56 + ".onion", "a" * 56 + ".onion:8080", "unix:/run/box"):
        ticket = Ticket(box, role, token)
        assert tickets.parse(f"  {ticket}\n") == ticket


@given(st.text())
def test_any_other_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        tickets.parse(text)


@pytest.mark.parametrize(
    "text", ["bento1:x:session:short", "bento1:x:owner:" + "A" * 43, "bento1:x:session:" + "!" * 43]
)
def test_a_damaged_ticket_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        tickets.parse(text)


def test_a_token_does_not_reach_a_log() -> None:
    token = os.urandom(32)
    ticket = Ticket("x", "session", token)
    assert str(ticket).rsplit(":", 1)[1] not in repr(ticket)
    assert token.hex() not in repr(ticket)


def test_a_token_alone_needs_a_box_to_be_told() -> None:
    ticket = Ticket("unix:/x", "session", b"t" * 32)
    bare = str(ticket).rsplit(":", 1)[1]
    assert tickets.parse(f"{bare}\n", maybe_box="unix:/x") == ticket
    assert tickets.parse(str(ticket), maybe_box="unix:/other") == ticket
    with pytest.raises(ConfigError):
        tickets.parse(bare)
