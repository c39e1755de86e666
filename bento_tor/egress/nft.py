"""The kernel's own judgement, behind the broker's: one nftables table that knows the broker by its user id.

Made from the same rules: what a fault in the broker would let out, the kernel refuses. No NAT, no connection
tracking (it would burden the relay's own traffic): every packet is judged by where it goes. `render` is pure, and
writes nothing but numbers and addresses that we have spelled; `load` and `unload` need CAP_NET_ADMIN.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from bento_tor.errors import SandboxError
from bento_tor.policy.destinations import Destinations
from bento_tor.policy.exit_policy import IPAddress, IPNetwork, Rule

_NFT = "nft"
_TIMEOUT_S = 20
_DNS_PORT = 53
# A reset and not a silent drop: connect() then fails at once instead of after minutes. (ICMP's refusals are
# rate-limited, and leave connections hanging.)
_REFUSE = "reject with tcp reset"


def table_name(uid: int) -> str:
    """The table of the broker with this user id: boxes on one machine do not touch each other's."""
    return f"bento_tor_egress_{int(uid)}"


def render(
    rules: Destinations,
    *,
    uid: int,
    resolvers: Iterable[IPAddress] = (),
    maybe_socks: tuple[IPAddress, int] | None = None,
) -> str:
    """The text that puts the table in place of an older one, in one transaction.

    `resolvers`: whom the broker asks for names. `maybe_socks`: tor's SOCKS port, where it is not a unix socket."""
    table = f"inet {table_name(uid)}"
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    lines += _chain("bento_relay", _relay(rules))
    lines += _chain("bento_operator", _operator(rules))
    lines += _chain("bento_judge", [*_own_ways(resolvers, maybe_socks), *_never(rules), "goto bento_operator"])
    hook = "type filter hook output priority 0; policy accept;"
    lines += _chain("bento_out", [hook, f"meta skuid {int(uid)} goto bento_judge"])
    return "\n".join([*lines, "}", ""])


def load(text: str) -> None:
    """Put a rendered table in place. Raises SandboxError where the kernel does not take it."""
    _run("-f", "-", given=text)


def unload(uid: int) -> None:
    """Take the table away. Raises SandboxError."""
    table = f"inet {table_name(uid)}"
    _run("-f", "-", given=f"add table {table}\ndelete table {table}\n")


def is_loaded(uid: int) -> bool:
    """Whether the table is in place. Raises SandboxError where nobody may look."""
    return f"table inet {table_name(uid)}\n" in _run("list", "tables") + "\n"


def _own_ways(resolvers: Iterable[IPAddress], maybe_socks: tuple[IPAddress, int] | None) -> list[str]:
    """What the broker itself needs, before the never-list: a resolver is often on this machine or its LAN."""
    lines = [
        f"{_to(address)} {protocol} dport {_DNS_PORT} accept" for address in resolvers for protocol in ("udp", "tcp")
    ]
    if maybe_socks is not None:
        address, port = maybe_socks
        lines.append(f"{_to(address)} tcp dport {int(port)} accept")
    return lines


def _never(rules: Destinations) -> list[str]:
    # `fib`: every address that is this machine's at that moment, also one that came after the rules.
    lines = ["meta l4proto != tcp drop", f"fib daddr type != unicast {_REFUSE}"]
    for family, version in (("ip", 4), ("ip6", 6)):
        networks = ", ".join(_spell(network) for network in rules.never if network.version == version)
        lines.append(f"{family} daddr {{ {networks} }} {_REFUSE}")
    return lines


def _operator(rules: Destinations) -> list[str]:
    lines = [_judged(rule, "goto bento_relay") for rule in rules.operator]
    return [*lines, "goto bento_relay"]


def _relay(rules: Destinations) -> list[str]:
    return [*(_judged(rule, "accept") for rule in rules.exit_policy or ()), _REFUSE]


def _judged(rule: Rule, accepted: str) -> str:
    ports = f"{rule.first_port}-{rule.last_port}" if rule.first_port < rule.last_port else str(rule.first_port)
    family = "ip" if rule.network.version == 4 else "ip6"
    return f"{family} daddr {_spell(rule.network)} tcp dport {ports} {accepted if rule.accepts else _REFUSE}"


def _to(address: IPAddress) -> str:
    return f"{'ip' if address.version == 4 else 'ip6'} daddr {_spell_address(address)}"


def _spell(network: IPNetwork) -> str:
    return f"{_spell_address(network.network_address)}/{network.prefixlen}"


def _spell_address(address: IPAddress) -> str:
    """Of the number alone: an address's own text could carry a scope."""
    return str(type(address)(int(address)))


def _chain(name: str, lines: Iterable[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {line}" for line in lines), "  }"]


def _run(*args: str, given: str = "") -> str:
    try:
        answer = subprocess.run([_NFT, *args], input=given, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as why:
        raise SandboxError("nftables is not installed", hint="install the package nftables") from why
    except (OSError, subprocess.TimeoutExpired) as why:
        raise SandboxError(f"nft does not run: {why}") from why
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["it gives no reason"])[0]
        hint = "start the box as root, or go without the kernel's rules" if "permitted" in reason else ""
        raise SandboxError(f"the kernel does not take the egress rules: {reason[:200]}", hint=hint)
    return answer.stdout
