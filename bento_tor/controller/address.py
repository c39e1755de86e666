"""The box's virtual address on this host's `lo`: what an exit endpoint leads to. Needs root where it must be added."""

from __future__ import annotations

import socket
import subprocess

from bento_tor.errors import BentoError

_TIMEOUT_S = 10


def is_on_this_host(address: str) -> bool:
    """Whether a socket can have `address` here."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def add_to_lo(address: str) -> bool:
    """Put `address` on `lo` unless it is on this host already. True: we did. Raises BentoError."""
    if is_on_this_host(address):
        return False
    _ip("add", address)
    return True


def remove_from_lo(address: str) -> None:
    """Take it away again. Raises BentoError."""
    _ip("delete", address)


def _ip(verb: str, address: str) -> None:
    argv = ["ip", "address", verb, f"{address}/32", "dev", "lo"]
    hint = f"as root: {' '.join(argv)}"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise BentoError("the program ip does not run", hint="install the package iproute2") from why
    if done.returncode:
        raise BentoError(f"cannot {verb} the address {address} on lo: {done.stderr.strip()}", hint=hint)
