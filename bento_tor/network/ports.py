"""Free TCP ports on 127.0.0.1, below the range from which the kernel takes ports for outgoing connections."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from bento_tor.errors import TorError

_LOWEST = 10_000
_DEFAULT_EPHEMERAL = 32_768


def allocate_ports(count: int) -> tuple[int, ...]:
    """`count` ports that nobody listens on now, in random places, so that two networks seldom want the same
    ones.

    They are not reserved: tor says so if one is taken before it starts. Raises TorError where there are not
    enough."""
    candidates = list(range(_LOWEST, max(_ephemeral_start(), _LOWEST)))
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    if len(found) < count:
        raise TorError(f"only {len(found)} of {count} TCP ports are free on 127.0.0.1")
    return tuple(found)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As tor binds: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ephemeral_start() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return _DEFAULT_EPHEMERAL
    return int(text.split()[0])
