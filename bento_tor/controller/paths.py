"""Which relays a circuit of ours goes through, from what the consensus says of them. Pure: text, chance and further
facts come in as arguments.

tor takes a controller's path as it is, so its own rules are kept here: the first hop is one of its guards (a fresh
first hop for each circuit would sooner or later be a relay of somebody who watches), no two hops of one family or one
subnet, the middle by bandwidth with the consensus's own weights (dir-spec, "Computing Bandwidth Weights").
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bento_tor.errors import ConfigError, TorError

# A session may last: each hop is one that tor would take for a long-lived stream.
_HOP_FLAGS = frozenset({"Running", "Valid", "Fast", "Stable"})
_LAST_FLAGS = frozenset({"Running", "Valid"})
_WEIGHT_SCALE = 10_000
_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})")
_NICKNAME = re.compile(r"[A-Za-z0-9]{1,19}")
_UNKNOWN_COUNTRY = ("", "??")


class NoDescriptor(TorError):
    """tor has no descriptor of that relay, and could not extend to it either."""


@dataclass(frozen=True)
class Relay:
    """One relay of the consensus. `family` (fingerprints that it names), `family_ids` and `country` are known only
    where somebody asked for them: see `Learn`."""

    fingerprint: str
    nickname: str
    addresses: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    bandwidth: int = 0
    family: frozenset[str] = field(default=frozenset(), repr=False)
    family_ids: frozenset[str] = field(default=frozenset(), repr=False)
    country: str = ""

    @property
    def words(self) -> str:
        """`nickname (FINGERPRINT)`"""
        return f"{self.nickname} ({self.fingerprint})"


@dataclass(frozen=True)
class Consensus:
    """The relays by fingerprint, and the consensus's bandwidth weights by name."""

    relays: Mapping[str, Relay]
    weights: Mapping[str, int]


@dataclass(frozen=True)
class Rules:
    """What hops of one circuit must not share. `distinct_subnets` is tor's EnforceDistinctSubnets: off in a private
    network, where every relay is at 127.0.0.1."""

    distinct_subnets: bool = True


@dataclass(frozen=True)
class Path:
    """Three hops, first to last."""

    guard: Relay
    middle: Relay
    last: Relay

    @property
    def hops(self) -> tuple[Relay, Relay, Relay]:
        """In order."""
        return self.guard, self.middle, self.last


# The same relay with its family and country. Raises NoDescriptor.
Learn = Callable[[Relay], Relay]


def parse_consensus(text: str) -> Consensus:
    """The relays of a microdescriptor consensus (dir-spec, 3.9). A relay whose lines are not as they should be is
    left out."""
    relays: dict[str, Relay] = {}
    weights: dict[str, int] = {}
    entry: list[str] = []
    for line in text.splitlines():
        if line.startswith(("r ", "directory-footer")):
            _add(relays, entry)
            entry = []
        if line.startswith("bandwidth-weights "):
            weights = _numbers(line)
        elif line.startswith(("r ", "a ", "s ", "w ")):
            entry.append(line)
    _add(relays, entry)
    return Consensus(relays, weights)


def find_relay(consensus: Consensus, name: str) -> Relay:
    """The relay of that fingerprint, or of that nickname where it is one relay's only.

    Raises ConfigError: a nickname is no proof of anything, anybody may take it."""
    found = _FINGERPRINT.fullmatch(name)
    if found is None and not _NICKNAME.fullmatch(name):
        raise ConfigError(f"{name!r} names no relay", hint="a relay is named by its fingerprint: 40 hexadecimal digits")
    if found is not None:
        named = [relay for relay in (consensus.relays.get(found[1].upper()),) if relay is not None]
    else:
        named = [relay for relay in consensus.relays.values() if relay.nickname.lower() == name.lower()]
    if not named:
        raise ConfigError(f"the consensus has no relay {name}", hint="it may be down, or mistyped")
    if len(named) > 1:
        listed = ", ".join(sorted(relay.fingerprint for relay in named))
        raise ConfigError(f"{len(named)} relays are called {name}: {listed}", hint="name the one by its fingerprint")
    if not named[0].flags >= _LAST_FLAGS:
        raise ConfigError(f"the relay {named[0].words} is not running", hint="try again later")
    return named[0]


def parse_guards(text: str) -> tuple[str, ...]:
    """The fingerprints in `GETINFO entry-guards` that can be used, the best first: tor keeps them in the order in
    which it prefers them; those that it has never tried come after those that are up."""
    found: dict[str, list[str]] = {"up": [], "never-connected": []}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        status = rest.split(" ", 1)[0]
        fingerprint = re.split("[~=]", name, maxsplit=1)[0].removeprefix("$")
        if status in found and _FINGERPRINT.fullmatch(fingerprint):
            found[status].append(fingerprint.upper())
    return tuple(found["up"] + found["never-connected"])


def extend_order(known: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """The order in which guards were met: `known`, also those not offered now, then what is new of `offered`."""
    return (*known, *(each for each in offered if each not in known))


def parse_family(microdescriptor: str) -> tuple[frozenset[str], frozenset[str]]:
    """The relays that a microdescriptor names as its family (fingerprints only), and its family ids."""
    family: set[str] = set()
    ids: set[str] = set()
    for line in microdescriptor.splitlines():
        keyword, *words = line.split()[:1000] or [""]
        if keyword == "family":
            names = [re.split("[~=]", word, maxsplit=1)[0] for word in words]
            family |= {found[1].upper() for found in map(_FINGERPRINT.fullmatch, names) if found}
        elif keyword == "family-ids":
            ids |= set(words)
    return frozenset(family), frozenset(ids)


def related(one: Relay, other: Relay, rules: Rules) -> bool:
    """Whether they must not be in one circuit: the same relay, one subnet, or one family.

    Both must name the other: a relay that claims half of the network as its family would choose our path by it."""
    if one.fingerprint == other.fingerprint:
        return True
    if one.fingerprint in other.family and other.fingerprint in one.family:
        return True
    if one.family_ids & other.family_ids:
        return True
    return rules.distinct_subnets and bool(_subnets(one) & _subnets(other))


def choose_path(
    consensus: Consensus, last: Relay, guards: Sequence[str], rules: Rules, learn: Learn, chance: Callable[[], float]
) -> Path:
    """A path that ends at `last`. `guards`: fingerprints, the best first; `chance` gives numbers from 0 to 1, 1 not
    included. Raises TorError where there is none."""
    known_last = learn(last)
    guard = choose_guard(consensus, known_last, guards, rules, learn)
    return Path(guard, choose_middle(consensus, guard, known_last, rules, learn, chance), known_last)


def choose_guard(consensus: Consensus, last: Relay, guards: Iterable[str], rules: Rules, learn: Learn) -> Relay:
    """The first of tor's guards that may be in a circuit with `last`. Raises TorError."""
    for fingerprint in guards:
        relay = consensus.relays.get(fingerprint)
        if relay is None or not relay.flags >= _HOP_FLAGS:
            continue
        known = learn(relay)
        if not related(known, last, rules):
            return known
    raise TorError(
        f"none of tor's entry guards can be used for a circuit to {last.words}",
        hint="they may be down, or of that relay's family: try again later, or use --route onion",
    )


def choose_middle(
    consensus: Consensus, guard: Relay, last: Relay, rules: Rules, learn: Learn, chance: Callable[[], float]
) -> Relay:
    """A middle hop by bandwidth. What cannot be told from the consensus is learnt of the one that was drawn; where it
    does not fit, another is drawn, which comes to the same as drawing from those that fit. Raises TorError."""
    left = middle_weights(consensus, guard, last, rules)
    while left:
        drawn = draw(left, chance())
        with suppress(NoDescriptor):  # tor's own circuits pass over such a one, too
            drawn = learn(drawn)
            if _fits_between(drawn, guard, last, rules):
                return drawn
        left = {relay: weight for relay, weight in left.items() if relay.fingerprint != drawn.fingerprint}
    raise TorError(f"no relay can stand between {guard.words} and {last.words}", hint="try again later")


def middle_weights(consensus: Consensus, guard: Relay, last: Relay, rules: Rules) -> dict[Relay, int]:
    """Every relay that the consensus allows between those two, and its weight there. Where none has any weight (a
    young network), all have the same."""
    found = {
        relay: relay.bandwidth * _position_weight(consensus.weights, relay)
        for relay in consensus.relays.values()
        if relay.flags >= _HOP_FLAGS and not related(relay, guard, rules) and not related(relay, last, rules)
    }
    if not any(found.values()):
        return dict.fromkeys(found, 1)
    return {relay: weight for relay, weight in found.items() if weight}


def draw(weighted: Mapping[Relay, int], point: float) -> Relay:
    """The relay at `point` (0 to 1, 1 not included) of the weights laid end to end."""
    left = point * sum(weighted.values())
    for relay, weight in weighted.items():
        left -= weight
        if left < 0:
            return relay
    return list(weighted)[-1]  # a float that was rounded up


def _fits_between(middle: Relay, guard: Relay, last: Relay, rules: Rules) -> bool:
    if related(middle, guard, rules) or related(middle, last, rules):
        return False
    # Three hops in one country are one court order.
    return middle.country in _UNKNOWN_COUNTRY or not middle.country == guard.country == last.country


def _position_weight(weights: Mapping[str, int], relay: Relay) -> int:
    """Wmd, Wmg, Wme or Wmm: bandwidth that is scarce as guard or exit is left to those."""
    is_exit = "Exit" in relay.flags and "BadExit" not in relay.flags
    letter = ("d" if is_exit else "g") if "Guard" in relay.flags else ("e" if is_exit else "m")
    return weights.get(f"Wm{letter}", _WEIGHT_SCALE)


def _subnets(relay: Relay) -> frozenset[str]:
    """As tor has them: IPv4 by /16, IPv6 by /32."""
    networks = (
        ipaddress.ip_network((address, 32 if ":" in address else 16), strict=False) for address in relay.addresses
    )
    return frozenset(map(str, networks))


def _add(relays: dict[str, Relay], entry: Sequence[str]) -> None:
    """The relay of one entry, where it is whole: `r NICKNAME IDENTITY DATE TIME IP ORPORT DIRPORT` and its flags."""
    lines = {line[0]: line.split() for line in entry if line[0] != "a"}
    more = [line.split()[1] for line in entry if line.startswith("a ") and len(line.split()) > 1]
    if len(lines.get("r", ())) != 8 or "s" not in lines:
        return
    try:
        fingerprint = base64.b64decode(lines["r"][2] + "=", validate=True).hex().upper()
        addresses = (
            str(ipaddress.IPv4Address(lines["r"][5])),
            *(str(ipaddress.ip_address(text.rpartition(":")[0].strip("[]"))) for text in more),
        )
    except (binascii.Error, ValueError):
        return
    if len(fingerprint) == 40:
        bandwidth = max(0, _numbers(" ".join(lines.get("w", ["w"]))).get("Bandwidth", 0))
        flags = frozenset(lines["s"][1:])
        relays[fingerprint] = Relay(fingerprint, lines["r"][1], addresses, flags, bandwidth)


def _numbers(line: str) -> dict[str, int]:
    """`keyword A=1 B=2` as numbers."""
    return {name: int(value) for name, value in re.findall(r"(\S+)=(-?[0-9]{1,18})(?= |$)", line)}
