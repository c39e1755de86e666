"""An exit policy as a running tor states it (`GETINFO exit-policy/full`): read strictly, judged with default deny.

Its grammar is not torrc's: a rule without a 6 speaks of IPv4 only, `accept6` and `reject6` of IPv6 only, and tor has
expanded `private` and left out what is redundant. A rule that does not parse makes the whole policy unusable.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from bento_tor.errors import ConfigError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# An address has no scope (`%eth0`): what is put into kernel rules is ours to spell.
_RULE = re.compile(r"(accept|reject)(6?) ([0-9a-fA-F.:/\[\]*]+):(\*|[0-9]{1,5}(?:-[0-9]{1,5})?)")
_ALL = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Rule:
    """Accept or reject one network's ports, first to last, both included."""

    accepts: bool
    network: IPNetwork
    first_port: int
    last_port: int

    def covers(self, address: IPAddress, port: int) -> bool:
        """Whether it speaks of this destination."""
        return (
            address.version == self.network.version
            and address in self.network
            and self.first_port <= port <= self.last_port
        )


def parse(text: str) -> tuple[Rule, ...]:
    """The rules, in order. Raises ConfigError for anything that is not exactly a rule."""
    return tuple(_parse_rule(line) for line in text.splitlines() if line)


def unmapped(address: IPAddress) -> IPAddress:
    """The address that the kernel would send to: IPv4 in IPv6 is IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def accepts(rules: tuple[Rule, ...], address: IPAddress, port: int) -> bool:
    """The first rule that speaks of the destination decides; none: rejected. IPv4 in IPv6 is judged as IPv4."""
    address = unmapped(address)
    return next((rule.accepts for rule in rules if rule.covers(address, port)), False)


def _parse_rule(line: str) -> Rule:
    found = _RULE.fullmatch(line)
    if found is None:
        raise ConfigError(f"tor states an exit policy with a rule that is none: {line[:80]!r}")
    verb, six, host, ports = found.groups()
    first, _, last = ports.partition("-")
    first_port, last_port = (1, 65535) if ports == "*" else (int(first), int(last or first))
    network = _parse_network(line, host, 6 if six else 4)
    if not 1 <= first_port <= last_port <= 65535:
        raise ConfigError(f"tor states an exit policy with impossible ports: {line[:80]!r}")
    return Rule(verb == "accept", network, first_port, last_port)


def _parse_network(line: str, host: str, version: int) -> IPNetwork:
    if host == "*":
        return _ALL[version]
    bare = host.replace("[", "", 1).replace("]", "", 1) if version == 6 else host
    try:
        network = ipaddress.ip_network(bare, strict=False)
    except ValueError as why:
        raise ConfigError(f"tor states an exit policy with an address that is none: {line[:80]!r}") from why
    if network.version != version:
        raise ConfigError(f"tor states an exit policy whose address is of the other family: {line[:80]!r}")
    return network
