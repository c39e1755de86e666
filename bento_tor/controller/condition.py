"""How a running tor is: its version, how far it is, its relay and the box's onion service, in its own words.

Asks, and changes nothing; nothing here goes out to the network.
"""

from __future__ import annotations

import msgspec

from bento_tor.controller.bootstrap import read_bootstrap
from bento_tor.controller.tor import Tor


class RelayCondition(msgspec.Struct, frozen=True):
    """Of a tor that is a relay. `flags`: what the consensus that it has says of it; `listed`: whether it names it.
    `reachable`: tor has seen its own ORPort from outside. `sent`, `received`: bytes since it started."""

    nickname: str
    fingerprint: str
    listed: bool
    flags: tuple[str, ...]
    reachable: bool


class Condition(msgspec.Struct, frozen=True):
    """Of one tor. `bootstrap`: percent. `maybe_published`: whether it has a descriptor of the onion service that was
    asked about; None: nobody asked. `uptime_s`: since it started; `sent`, `received`: bytes since then."""

    endpoint: str
    version: str
    uptime_s: int
    bootstrap: int
    words: str
    circuits: bool
    sent: int
    received: int
    maybe_relay: RelayCondition | None = None
    maybe_published: bool | None = None

    @property
    def works(self) -> bool:
        """Whether it can be used."""
        return self.bootstrap >= 100


def read_condition(tor: Tor, address: str = "") -> Condition:
    """Ask `tor`; `address` is of an onion service of its own. Raises TorError."""
    bootstrap = read_bootstrap(tor)
    return Condition(
        str(tor.endpoint),
        tor.version,
        _number(tor, "uptime"),
        bootstrap.progress,
        bootstrap.words,
        _one(tor, "status/circuit-established") == "1",
        _number(tor, "traffic/written"),
        _number(tor, "traffic/read"),
        _maybe_relay(tor),
        # What it would publish, and does as soon as it can (control-spec 3.9): not asked of any directory.
        bool(_one(tor, f"hs/service/desc/id/{address.removesuffix('.onion')}")) if address else None,
    )


def _maybe_relay(tor: Tor) -> RelayCondition | None:
    fingerprint = _one(tor, "fingerprint")
    if not fingerprint:
        return None
    entry = _one(tor, f"ns/id/{fingerprint}")
    flags = next((line[2:].split() for line in entry.splitlines() if line.startswith("s ")), [])
    reachable = _one(tor, "status/reachability-succeeded/or") == "1"
    nickname = next(iter(tor.get_conf("Nickname")), "") or "Unnamed"
    return RelayCondition(nickname, fingerprint, bool(entry), tuple(flags), reachable)


def _one(tor: Tor, key: str) -> str:
    """Its value; empty where this tor has none."""
    reply = tor.msg(f"GETINFO {key}")
    return reply.lines[0].removeprefix(f"{key}=").strip() if reply.ok else ""


def _number(tor: Tor, key: str) -> int:
    text = _one(tor, key)
    return int(text) if text.isascii() and text.isdecimal() else 0
