"""Real connections through a SOCKS port of tor's, to prove that a service can be reached. Clients have their
own way."""

from __future__ import annotations

import secrets
import socket
import time

import socks

from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import ConnectError, TorError

# An introduction that hangs takes tor 30 s and more to give up; a fresh circuit takes a second.
TRY_TIMEOUT_S = 12.0
_PAUSE_S = 0.25


class SocksStream(socks.socksocket):  # type: ignore[misc] # PySocks has no types
    """PySocks, which knows TCP proxies over IPv4 only, taught unix sockets and IPv6: tor offers all of them.

    Names are resolved by tor. Each `user` gets circuits of its own; tor reserves those that begin with "<torS0X>"."""

    def __init__(self, proxy: Endpoint, *, user: str, password: str) -> None:
        family = socket.AF_UNIX if proxy.is_unix else socket.AF_INET6 if ":" in proxy.host else socket.AF_INET
        super().__init__(family)
        self._path = str(proxy.path or "")
        self.set_proxy(socks.SOCKS5, proxy.host or "unix", proxy.port or 1, rdns=True, username=user, password=password)

    def _proxy_addr(self) -> object:
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
