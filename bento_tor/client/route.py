"""A client's ways to a box. Owns the box's address as users write it, the SOCKS connection, and what its errors mean.

Names are resolved by tor, never here. Each isolation word gets circuits of its own, so that two functions of one
user share a circuit only if she says so.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Callable
from typing import Literal

import msgspec
import socks

from bento_tor.client.transport import SocketStream, timeval
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import is_onion_address
from bento_tor.controller.relay import EXIT_PORT, VIRTUAL_ADDRESS
from bento_tor.controller.streams import SocksStream
from bento_tor.errors import ConfigError, ConnectError, TorError

DEFAULT_SOCKS = "127.0.0.1:9050"
DEFAULT_PORT = 80
# How many tries to come back fit into the time for it.
_TRIES = 3
_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})")
_PORT = re.compile(r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]")


class BoxAddress(msgspec.Struct, frozen=True):
    """Where a box is: `onion` (host and port, through tor), `exit` (the fingerprint of the relay that it is beside: see
    `exit_route`), or `direct` (a unix socket, for tests: no Tor)."""

    route: Literal["onion", "exit", "direct"]
    host: str
    port: int = 0

    def __str__(self) -> str:
        usual = EXIT_PORT if self.route == "exit" else DEFAULT_PORT
        return self.host if self.port in (0, usual) else f"{self.host}:{self.port}"

    @property
    def target(self) -> tuple[str, int]:
        """What tor is asked for."""
        return (VIRTUAL_ADDRESS if self.route == "exit" else self.host), self.port


def parse_address(text: str) -> BoxAddress:
    """`<56 letters>.onion[:PORT]`, `FINGERPRINT[:PORT]` of a relay, or `unix:PATH` for a box on this machine.

    Raises ConfigError where it is neither; a wrong checksum is found here, before tor is asked."""
    if text.startswith("unix:") and len(text) > 5:
        return BoxAddress("direct", text)
    host, _, port_text = text.partition(":")
    if (relay := _FINGERPRINT.fullmatch(host)) and (not port_text or _PORT.fullmatch(port_text)):
        return BoxAddress("exit", relay[1].upper(), int(port_text or EXIT_PORT))
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else (0 if port_text else DEFAULT_PORT)
    host = host.lower()
    if host.endswith(".onion") and not is_onion_address(host):
        raise ConfigError(f"{host} is not an onion address", hint="56 letters and digits, then .onion: one is mistyped")
    if not host.endswith(".onion") or not 1 <= port <= 65535:
        raise ConfigError(
            f"{text!r} is not a box's address",
            hint="a box is named <56 letters>.onion or <...>.onion:PORT; with --route exit by its relay",
        )
    return BoxAddress("onion", host, port)


def is_relay(text: str) -> bool:
    """Whether `text` names a box by its relay's fingerprint."""
    return _FINGERPRINT.fullmatch(text.partition(":")[0]) is not None


class UnixTransport:
    """To a box on this machine, without Tor: for tests."""

    builds_circuits = False

    def __init__(self, address: BoxAddress, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s

    def open(self) -> SocketStream:
        """A connected stream. Raises ConnectError where no box listens."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(self._address.host.removeprefix("unix:"))
        except OSError as why:
            sock.close()
            raise ConnectError(f"no box listens at {self._address} ({_reason(why)})") from why
        return SocketStream(sock, timeout_s=self._timeout_s)


class TorTransport:
    """Through tor's SOCKS port. Every stream has the same isolation word, so tor takes the circuit that stands, and
    builds another one only where that has failed."""

    builds_circuits = True

    def __init__(self, address: BoxAddress, proxy: Endpoint, *, isolation: str, timeout_s: float) -> None:
        self._address = address
        self._proxy = proxy
        # Of the isolation word tor learns a hash only.
        self._user = _hashed(isolation)
        self._timeout_s = timeout_s
        self._patience_s = timeout_s

    def open(self) -> TorStream:
        """A stream on which the first `send` asks for the box. Raises TorError where no tor is there.

        The first one has all of the timeout, those that come back a third of it: tor can leave a stream without a
        circuit until it gives up after two minutes (0.4.9.11; SocksTimeout), while a fresh circuit takes a second."""
        sock = SocksStream(self._proxy, user=self._user, password="bento")  # noqa: S106 - any; the pair isolates
        sock.settimeout(self._timeout_s)
        try:
            sock.meet()
        except (socks.ProxyError, OSError) as why:
            sock.close()
            raise _no_tor(self._proxy, why) from why
        patience_s, self._patience_s = self._patience_s, self._timeout_s / _TRIES
        times = {"timeout_s": self._timeout_s, "patience_s": patience_s}
        return TorStream(sock, self._address, self._proxy, on_silence=self._leave_circuit, **times)

    def _leave_circuit(self) -> None:
        """Whatever tor waits for, the next stream shall not wait for it too: it gets a circuit of its own."""
        self._user = _hashed(self._user)


class TorStream(SocketStream):
    """A stream through tor. What is sent first travels with the request for it (optimistic data).

    `patience_s`: how long tor may take until there is a way to the box; then `on_silence` is told."""

    def __init__(
        self,
        sock: SocksStream,
        address: BoxAddress,
        proxy: Endpoint,
        *,
        timeout_s: float,
        patience_s: float | None = None,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(sock, timeout_s=timeout_s)
        self._socks = sock
        self._address = address
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._patience_s = timeout_s if patience_s is None else patience_s
        self._on_silence = on_silence
        self._asked = False
        self._heard = False

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        if self._asked:
            super().send(data)
            return
        self._asked = True
        try:
            self._socks.ask(*self._address.target, data)
        except BlockingIOError as why:
            raise TimeoutError("tor takes nothing") from why

    def recv(self, max_bytes: int) -> bytes:
        """See `Stream`. The first one hears what tor answers."""
        if not self._heard:
            self.hear()
            self._heard = True
        return super().recv(max_bytes)

    def hear(self) -> None:
        """What tor answers. Raises ConnectError where it has no way to the box, TorError where it is no tor, or has
        gone."""
        try:
            # Building a circuit takes its time: where `recv` has half of the timeout, this may have all of it.
            self._socks.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(self._patience_s))
            self._socks.hear()
            self._socks.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(self._timeout_s / 2))
        except BlockingIOError as why:
            self._on_silence()
            raise ConnectError(
                f"{self._address} did not answer in {self._patience_s:g} seconds",
                hint="try again, or give it longer with --timeout",
            ) from why
        except socks.SOCKS5Error as why:
            raise _explain(self._address, why) from why
        except (socks.ProxyError, OSError) as why:
            raise _no_tor(self._proxy, why) from why


def _hashed(isolation: str) -> str:
    return hashlib.sha256(isolation.encode(errors="surrogateescape")).hexdigest()[:32]


def _no_tor(proxy: Endpoint, why: Exception) -> TorError:
    return TorError(
        f"no tor answers as a SOCKS proxy at {proxy} ({_reason(why)})",
        hint="start tor, or name its SOCKS port with --socks or --network",
    )


# What tor answers: RFC 1928 below 0xF0; above it tor's ExtendedErrors (tor's man page, SocksPort).
_MEANINGS = {
    0x01: (
        "{box} cannot be reached: its onion service closed the connection, or a circuit failed",
        "is the box running?",
    ),
    0x02: ("tor does not allow a connection to {box}", "look at the flags of its SocksPort"),
    0x03: ("tor has no way to {box} yet", "wait until tor has bootstrapped"),
    0x04: (
        "{box} cannot be found or reached",
        "check the address; a box that just started needs a minute, another a client's key",
    ),
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
    0xF4: (
        "{box} wants client authorisation, and tor has no key for it",
        "ask the operator for one, then 'bento-tor client auth add'",
    ),
    0xF5: (
        "{box} does not accept the client authorisation key that tor has",
        "ask the operator for a new key",
    ),
    0xF6: ("{box} is not a valid onion address", "one letter is mistyped"),
    0xF7: ("the introduction to {box} timed out", "try again"),
}


def _explain(address: BoxAddress, error: socks.SOCKS5Error) -> ConnectError:
    found = re.match(r"(0x[0-9a-f]+)", str(error.msg))
    return explain(address, int(found.group(1), 16) if found else 0x01, str(error.msg))


def explain(address: BoxAddress, code: int, said: str = "") -> ConnectError:
    """What tor's answer to the request for a stream to that box means. `said`: its words, where the code has no meaning
    to us."""
    sentence, hint = _MEANINGS.get(
        code, ("tor could not connect to {box} (" + (said or f"{code:#04x}") + ")", "try again")
    )
    return ConnectError(sentence.format(box=address), hint=hint)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
