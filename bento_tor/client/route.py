"""A client's way to a box. Owns the box's address as users write it, the SOCKS connection, and what its errors mean.

Names are resolved by tor, never here. Each isolation word gets circuits of its own, so that two functions of one
user share a circuit only if she says so.
"""

from __future__ import annotations

import hashlib
import re
import socket
from typing import Literal

import msgspec
import socks

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import is_onion_address
from bento_tor.controller.streams import SocksStream
from bento_tor.errors import ConfigError, ConnectError, TorError

DEFAULT_SOCKS = "127.0.0.1:9050"
DEFAULT_PORT = 80


class BoxAddress(msgspec.Struct, frozen=True):
    """Where a box is: `onion` (host and port, through tor), or `direct` (a unix socket, for tests: no Tor)."""

    route: Literal["onion", "direct"]
    host: str
    port: int = 0

    def __str__(self) -> str:
        return self.host if self.port in (0, DEFAULT_PORT) else f"{self.host}:{self.port}"


def parse_address(text: str) -> BoxAddress:
    """`<56 letters>.onion[:PORT]`, or `unix:PATH` for a box on this machine.

    Raises ConfigError where it is neither; a wrong checksum is found here, before tor is asked."""
    if text.startswith("unix:") and len(text) > 5:
        return BoxAddress("direct", text)
    host, _, port_text = text.partition(":")
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else (0 if port_text else DEFAULT_PORT)
    host = host.lower()
    if host.endswith(".onion") and not is_onion_address(host):
        raise ConfigError(f"{host} is not an onion address", hint="56 letters and digits, then .onion: one is mistyped")
    if not host.endswith(".onion") or not 1 <= port <= 65535:
        raise ConfigError(
            f"{text!r} is not a box's address", hint="a box is named <56 letters>.onion or <...>.onion:PORT"
        )
    return BoxAddress("onion", host, port)


def dial(address: BoxAddress, proxy: Endpoint, *, isolation: str, timeout_s: float) -> socket.socket:
    """A connected stream to the box. Raises ConnectError (the box) or TorError (our tor)."""
    if address.route == "direct":
        return _dial_direct(address, timeout_s)
    # Of the isolation word tor learns a hash only.
    user = hashlib.sha256(isolation.encode(errors="surrogateescape")).hexdigest()[:32]
    sock = SocksStream(proxy, user=user, password="bento")  # noqa: S106 - tor takes any; the pair isolates
    sock.settimeout(timeout_s)
    try:
        sock.connect((address.host, address.port), catch_errors=True)
    except TimeoutError as why:
        sock.close()
        raise ConnectError(
            f"{address} did not answer in {timeout_s:g} seconds",
            hint="try again, or give it longer with --timeout",
        ) from why
    except socks.SOCKS5Error as why:
        sock.close()
        raise _explain(address, why) from why
    except (socks.ProxyError, OSError) as why:
        sock.close()
        raise TorError(
            f"no tor answers as a SOCKS proxy at {proxy} ({_reason(why)})",
            hint="start tor, or name its SOCKS port with --socks or --network",
        ) from why
    return sock


def _dial_direct(address: BoxAddress, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout_s)
    try:
        sock.connect(address.host.removeprefix("unix:"))
    except OSError as why:
        sock.close()
        raise ConnectError(f"no box listens at {address} ({_reason(why)})") from why
    return sock


# What tor answers: RFC 1928 below 0xF0; above it tor's ExtendedErrors (tor's man page, SocksPort).
_MEANINGS = {
    0x01: (
        "{box} cannot be reached: its onion service closed the connection, or a circuit failed",
        "is the box running?",
    ),
    0x02: ("tor does not allow a connection to {box}", "look at the flags of its SocksPort"),
    0x03: ("tor has no way to {box} yet", "wait until tor has bootstrapped"),
    0x04: ("{box} cannot be found or reached", "check the address; a box that just started needs a minute"),
    0x05: (
        "{box} refused the connection: the onion service is there, the box behind it is not",
        "is the box running?",
    ),
    0x06: ("the connection to {box} timed out in tor", "try again"),
    0xF0: ("{box} is not published: no descriptor was found", "check the address; is the box online?"),
    0xF1: ("the descriptor of {box} cannot be read", "its tor may be too old or too new for yours"),
    0xF2: (
        "{box} could not be introduced: its onion service does not answer",
        "the box may have just gone; try again",
    ),
    0xF3: ("the rendezvous with {box} failed", "try again"),
    0xF4: ("{box} wants client authorisation, and tor has no key for it", "ask the operator for a key"),
    0xF5: (
        "{box} does not accept the client authorisation key that tor has",
        "ask the operator for a new key",
    ),
    0xF6: ("{box} is not a valid onion address", "one letter is mistyped"),
    0xF7: ("the introduction to {box} timed out", "try again"),
}


def _explain(address: BoxAddress, error: socks.SOCKS5Error) -> ConnectError:
    found = re.match(r"(0x[0-9a-f]+)", str(error.msg))
    code = int(found.group(1), 16) if found else 0x01
    sentence, hint = _MEANINGS.get(code, ("tor could not connect to {box} (" + str(error.msg) + ")", "try again"))
    return ConnectError(sentence.format(box=address), hint=hint)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
