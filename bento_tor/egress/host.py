"""What the broker must know of the machine that it runs on: its addresses, and whom it asks for names."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import psutil

from bento_tor.policy.destinations import maybe_address
from bento_tor.policy.exit_policy import IPAddress

_RESOLV_CONF = Path("/etc/resolv.conf")


def own_addresses() -> frozenset[IPAddress]:
    """Every address of this machine's interfaces, at this moment."""
    found = (
        maybe_address(each.address)
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family in {socket.AF_INET, socket.AF_INET6}
    )
    return frozenset(address for address in found if address is not None)


def resolvers(path: Path = _RESOLV_CONF) -> tuple[IPAddress, ...]:
    """The DNS servers of /etc/resolv.conf, in order; without any the C library asks this machine (resolv.conf(5))."""
    text = ""
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace")
    words = (line.split() for line in text.splitlines())
    found = [maybe_address(line[1]) for line in words if len(line) > 1 and line[0] == "nameserver"]
    listed = tuple(address for address in found if address is not None)
    return listed or tuple(a for a in map(maybe_address, ("127.0.0.1", "::1")) if a is not None)
