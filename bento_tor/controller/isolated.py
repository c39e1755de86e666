"""Circuits that belong to one isolation word: tor itself says by which SOCKS user name a circuit was made.

So ownership needs no list of ours that could go wrong, and what a killed process left behind can be found again.
"""

from __future__ import annotations

from dataclasses import dataclass

from bento_tor.controller.events import CircuitEvent, parse_event
from bento_tor.controller.tor import Tor

_MAX_BYTES = 255  # RFC 1929


@dataclass(frozen=True)
class Circuit:
    """A circuit of a tor's. `word`: its streams' SOCKS user name. Its path stays with tor: the first hop is what
    finds a hidden box."""

    id: str
    word: str
    status: str
    hops: int


def isolated_circuits(tor: Tor, prefix: str) -> list[Circuit]:
    """Every circuit whose word begins so, the other legs of a split one included. Raises TorError."""
    if not prefix or len(prefix) > _MAX_BYTES:
        raise ValueError("without a word these would be everybody's")
    events = [parse_event(f"CIRC {line}") for line in tor.get_info("circuit-status").splitlines()]
    circuits = [event for event in events if isinstance(event, CircuitEvent)]
    words = {_name(event): event.keyword("SOCKS_USERNAME") for event in circuits if event.keyword("SOCKS_USERNAME")}
    return [
        Circuit(event.circuit_id, word, event.status, len(event.path))
        for event in circuits
        if (word := words.get(_name(event), "")).startswith(prefix)
    ]


def close_isolated(tor: Tor, prefix: str) -> int:
    """Close them all, with the streams on them. Gives how many there were. Raises TorError."""
    found = isolated_circuits(tor, prefix)
    for circuit in found:
        tor.msg(f"CLOSECIRCUIT {circuit.id}")  # one that has gone by itself meanwhile is no failure
    return len(found)


def _name(event: CircuitEvent) -> str:
    """The legs of a split circuit (conflux) have one name together; only one of them bears the word."""
    return event.keyword("CONFLUX_ID") or event.circuit_id
