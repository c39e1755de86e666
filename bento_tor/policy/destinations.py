"""Where a function may connect to, straight out: the never-list, the operator's lines, the relay's exit policy.

All three must agree, in this order; an unknown exit policy accepts nothing. Also which names are asked for at all.
Pure: who resolves and connects is the broker's business, and egress/nft.py puts the same into the kernel.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bento_tor.errors import ConfigError
from bento_tor.policy import exit_policy
from bento_tor.policy.exit_policy import IPAddress, IPNetwork, Rule, unmapped

# What never belongs to the public internet, whatever an exit policy says. tor's own `private` leaves out carrier NAT
# (a cloud's metadata lives there), Azure's 168.63.129.16, Oracle's 192.0.0.0/24, and every IPv6 form that hides an
# IPv4 address.
NEVER: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/3", "168.63.129.16/32"),
        *("::/8", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16"),
        *("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)
# They lead nowhere but in test networks, which put their web servers there.
DOCUMENTATION: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)

_MAX_NAME_CHARS = 253
# The last label starts with a letter: 127.1, 0x7f.1 and 2130706433 are addresses to some resolvers, never names.
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
# Answered by this machine or its neighbours, not by the public DNS (RFC 6761, 6762, 8375, 9476; ICANN on .internal).
_LOCAL_NAME = re.compile(r".*\.(?:local|localhost|localdomain|internal|intranet|lan|home|corp|home\.arpa|alt)")
_OPERATOR_LINE = re.compile(
    r"(accept|reject)(6?) +(\*|[0-9./]+|\[[0-9a-fA-F:.]+\](?:/[0-9]{1,3})?)(?::(\*|[0-9]{1,5}(?:-[0-9]{1,5})?))?"
)
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Destinations:
    """What `exit` egress may reach.

    exit_policy    the relay's, as its tor states it; None: unknown, so nothing is accepted
    operator       lines of the operator's own. They narrow the exit policy and never widen it
    own            addresses of this host and of the relay
    documentation  documentation addresses lead somewhere here: in test networks only
    """

    exit_policy: tuple[Rule, ...] | None = None
    operator: tuple[Rule, ...] = ()
    own: frozenset[IPAddress] = frozenset()
    documentation: bool = False

    @property
    def never(self) -> tuple[IPNetwork, ...]:
        """The networks that nothing can open, this host's own addresses included."""
        listed = [net for net in NEVER if not (self.documentation and net in DOCUMENTATION)]
        own = {unmapped(address) for address in self.own}
        rest = [address for address in own if not any(address in net for net in listed)]
        # By number: an address of a host may come with a scope (fe80::1%eth0), a network has none.
        return (*listed, *sorted((_only(address) for address in rest), key=lambda net: (net.version, net)))

    def accepts(self, address: IPAddress, port: int) -> bool:
        """Whether a connection there is allowed. An address with a scope is one of this host's links: never."""
        address = unmapped(address)
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            return False
        if self.exit_policy is None or self.blocks(address, port):
            return False
        return exit_policy.accepts(self.exit_policy, address, port)

    def blocks(self, address: IPAddress, port: int) -> bool:
        """Whether the never-list or the operator's lines forbid it, whatever the relay's exit policy says."""
        address = unmapped(address)
        if any(address in network for network in self.never):
            return True
        first = next((rule for rule in self.operator if rule.covers(address, port)), None)
        return first is not None and not first.accepts

    def may_accept(self, port: int) -> bool:
        """Whether any address at all is accepted at this port. If not, a name is not even asked for: a question to the
        DNS is a way out, too."""
        rules = self.exit_policy or ()
        return any(rule.accepts and rule.first_port <= port <= rule.last_port for rule in rules)


def parse_operator(lines: Iterable[str]) -> tuple[Rule, ...]:
    """The operator's lines: `accept|reject ADDRESS[/BITS][:PORTS]`, in a torrc's grammar without its macros.

    `*` is every address of both families, after `accept6` and `reject6` of IPv6; an IPv6 address stands in brackets. No
    ports: all of them. Raises ConfigError for any other line."""
    return tuple(rule for line in lines for rule in _parse_operator_line(line))


def maybe_name(text: str) -> str | None:
    """A host name in the form that we ask for; None where it can be none of the public internet's (nor an onion)."""
    name = text.lower().removesuffix(".")
    if len(name) > _MAX_NAME_CHARS or not _NAME.fullmatch(name) or _LOCAL_NAME.fullmatch(name):
        return None
    return name


def maybe_address(text: str) -> IPAddress | None:
    """The address that a text spells in the one usual way; None where it is none."""
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def is_onion(name: str) -> bool:
    """Whether only tor can lead there (RFC 7686: asking the DNS for it would give it away)."""
    return name == "onion" or name.endswith(".onion")


def is_named(hosts: tuple[str, ...], host: str) -> bool:
    """Whether a manifest's `hosts` names this host. Empty: it names them all."""
    return not hosts or _canonical(host) in {_canonical(each) for each in hosts}


def _canonical(host: str) -> str:
    address = maybe_address(host)
    if address is not None:
        return str(unmapped(address))
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return host
    return host.lower().removesuffix(".")


def _only(address: IPAddress) -> IPNetwork:
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv4Network(address)
    return ipaddress.IPv6Network(int(address))


def _parse_operator_line(line: str) -> tuple[Rule, ...]:
    found = _OPERATOR_LINE.fullmatch(line.strip())
    if found is None:
        raise _bad_line(line, "it is not 'accept ADDRESS:PORTS' or 'reject ADDRESS:PORTS'")
    verb, six, host, maybe_ports = found.groups()
    bracketed = host.startswith("[")
    if six and not bracketed and host != "*":
        raise _bad_line(line, f"{verb}6 wants an IPv6 address, in brackets")
    families = ("", "6") if host == "*" and not six else ("6",) if six or bracketed else ("",)
    try:
        rules = exit_policy.parse("\n".join(f"{verb}{family} {host}:{maybe_ports or '*'}" for family in families))
    except ConfigError as why:
        raise _bad_line(line, "no such address or port") from why
    # It would never match: the kernel, and so the judge, sees such a destination as IPv4.
    if any(rule.network.version == 6 and rule.network.prefixlen and rule.network.overlaps(_MAPPED) for rule in rules):
        raise _bad_line(line, "write an IPv4 address as one")
    return rules


def _bad_line(line: str, why: str) -> ConfigError:
    return ConfigError(f"an egress line cannot be used: {line[:80]!r}: {why}", hint="for example 'reject *:25'")
