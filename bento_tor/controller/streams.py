"""Streams through a SOCKS port of tor's: what PySocks cannot do yet, and connections that prove that a service can
be reached."""

from __future__ import annotations

import secrets
import socket
import struct
import time
from typing import Any

import socks

from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import ConnectError, TorError

# An introduction that hangs takes tor 30 s and more to give up; a fresh circuit takes a second.
TRY_TIMEOUT_S = 12.0
_PAUSE_S = 0.25
# RFC 1928: version 5, one method offered; RFC 1929: username and password.
_METHOD = b"\x05\x01\x02"
_METHOD_TAKEN = b"\x05\x02"
_AUTH_TAKEN = b"\x01\x00"
_CONNECT = b"\x05\x01\x00\x03"
_ADDRESS_BYTES = {b"\x01": 4, b"\x04": 16}


class SocksStream(socks.socksocket):  # type: ignore[misc] # PySocks has no types
    """PySocks, which knows TCP proxies over IPv4 only, taught unix sockets and IPv6: tor offers all of them.

    And taught optimistic data (tor's socks-extensions): `meet`, then `ask` with the first payload, then `hear` the
    answer, where `connect` would wait for each. It saves a round trip of the whole circuit.
    Names are resolved by tor. Each `user` gets circuits of its own; tor reserves those that begin with "<torS0X>"."""

    def __init__(self, proxy: Endpoint, *, user: str, password: str) -> None:
        family = socket.AF_UNIX if proxy.is_unix else socket.AF_INET6 if ":" in proxy.host else socket.AF_INET
        super().__init__(family)
        self._path = str(proxy.path or "")
        self._login = (user.encode(), password.encode())
        self.set_proxy(socks.SOCKS5, proxy.host or "unix", proxy.port or 1, rdns=True, username=user, password=password)

    def meet(self) -> None:
        """Connect to the SOCKS port and log in, with nothing asked for yet. Costs no circuit.

        Raises OSError; socks.ProxyError where the other side is no SOCKS5 proxy."""
        socket.socket.settimeout(self, self._timeout)
        socket.socket.connect(self, self._proxy_addr())
        # One after the other: of both in one write tor 0.4.9.11 answers the second only.
        user, password = self._login
        login = b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password
        for said, answer in ((_METHOD, _METHOD_TAKEN), (login, _AUTH_TAKEN)):
            self.sendall(said)
            if self._take(2) != answer:
                raise socks.GeneralProxyError("it is no SOCKS5 proxy that isolates by user")

    def ask(self, host: str, port: int, first: bytes) -> None:
        """Ask for a stream to `host`:`port`, and send `first` on it already, in one write."""
        name = host.encode()
        self.sendall(_CONNECT + bytes([len(name)]) + name + struct.pack(">H", port) + first)

    def hear(self) -> None:
        """Tor's answer. Raises socks.SOCKS5Error with its code, socks.GeneralProxyError where it is none."""
        version, status, _, kind = struct.unpack("4c", self._take(4))
        if version != b"\x05":
            raise socks.GeneralProxyError("the answer is not SOCKS5")
        if status != b"\x00":
            words = socks.SOCKS5_ERRORS.get(status[0], "Unknown error")
            raise socks.SOCKS5Error(f"{status[0]:#04x}: {words}")
        if kind not in _ADDRESS_BYTES:
            raise socks.GeneralProxyError("the answer names no address")
        self._take(_ADDRESS_BYTES[kind] + 2)

    def _take(self, count: int) -> bytes:
        """Exactly so many bytes: one more would be the box's."""
        data = b""
        while len(data) < count:
            part = self.recv(count - len(data))
            if not part:
                raise socks.GeneralProxyError("it closed the connection")
            data += part
        return data

    def _proxy_addr(self) -> Any:
        return self._path or super()._proxy_addr()


def open_stream(
    endpoint: Endpoint, host: str, port: int, *, timeout_s: float, try_timeout_s: float = TRY_TIMEOUT_S
) -> socket.socket:
    """A connection to `host`:`port` through the SOCKS port `endpoint`, tried again until `timeout_s` has
    passed.

    Each try has SOCKS credentials of its own, so that tor takes a fresh circuit and not the one that hangs.
    The caller closes it. Raises TorError where the SOCKS port itself is not there, ConnectError where no try
    succeeded."""
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            return _open_once(endpoint, host, port, max(0.1, min(try_timeout_s, left_s)))
        except socks.ProxyConnectionError as why:
            hint = "is tor running, with its SOCKS port there?"
            raise TorError(f"nothing answers at the SOCKS port {endpoint}", hint=hint) from why
        except OSError as why:  # PySocks' own errors are OSErrors too
            if time.monotonic() + _PAUSE_S > deadline:
                raise ConnectError(f"{host}:{port} cannot be reached through tor: {why}") from why
        time.sleep(_PAUSE_S)


def check_reachable(endpoint: Endpoint, address: str, port: int, *, timeout_s: float) -> float:
    """Connect once for real and hang up. Returns the seconds it took. Raises as `open_stream`."""
    begun = time.monotonic()
    open_stream(endpoint, address, port, timeout_s=timeout_s).close()
    return time.monotonic() - begun


def _open_once(endpoint: Endpoint, host: str, port: int, timeout_s: float) -> socket.socket:
    stream = SocksStream(endpoint, user=f"bento-{secrets.token_hex(8)}", password=secrets.token_hex(8))
    stream.settimeout(timeout_s)
    try:
        stream.connect((host, port))
    except BaseException:
        stream.close()
        raise
    return stream
