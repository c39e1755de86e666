"""What the consensus says of the relays, as tor knows it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from bento_tor.controller.tor import Tor

_TIMEOUT_S = 60.0
# The public network has some 10,000; what a directory says must not fill our memory.
MAX_RELAYS = 20_000


@dataclass(frozen=True)
class Listed:
    """One relay. `bandwidth`: its weight, in the consensus' own unit (kilobytes a second, as measured)."""

    nickname: str
    fingerprint: str
    flags: tuple[str, ...]
    bandwidth: int


def relays(tor: Tor) -> tuple[Listed, ...]:
    """Every relay of the consensus (dir-spec, 3.4.1), at most MAX_RELAYS. Raises TorError."""
    found: list[Listed] = []
    for lines in _entries(tor.get_info("ns/all", timeout_s=_TIMEOUT_S)):
        if len(found) == MAX_RELAYS:
            break
        relay = _maybe_listed(lines)
        if relay is not None:
            found.append(relay)
    return tuple(found)


def _entries(text: str) -> Iterator[dict[str, list[str]]]:
    """The lines of each relay, by their keyword."""
    entry: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *words = line.split(" ")
        if key == "r":
            if entry:
                yield entry
            entry = {}
        entry[key] = words
    if entry:
        yield entry


def _maybe_listed(lines: dict[str, list[str]]) -> Listed | None:
    name, identity = (*lines.get("r", []), "", "")[:2]
    try:
        digest = base64.b64decode(identity + "=" * (-len(identity) % 4), validate=True)
    except binascii.Error:
        return None
    if len(digest) != 20:
        return None
    weights = dict(word.partition("=")[::2] for word in lines.get("w", []))
    weight = weights.get("Bandwidth", "")
    return Listed(name, digest.hex().upper(), tuple(lines.get("s", [])), int(weight) if weight.isdecimal() else 0)
