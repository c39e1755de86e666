"""Where metrics are read: HTTP/1.1 on a loopback port or a unix socket, one answer for each connection.

Served by the box's process, never by the keeper: whoever reaches the port (any user of the machine, a page in his
browser) is heard by the process that has no rights. Its words are read as far as the path, and not kept.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import ConfigError
from bento_tor.server.state import listen_private

_HEAD_BYTES = 16 * 1024
_CLIENT_S = 10.0
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]*)?")
# Who reads metrics is one program, with one connection.
_MOST_CLIENTS = 16
_BACKLOG = 8


def check_place(text: str) -> Endpoint:
    """The endpoint that `metrics = text` names. Raises ConfigError for one that others could reach."""
    endpoint = Endpoint.parse(text)
    if endpoint.path is not None or _is_loopback(endpoint.host):
        return endpoint
    # Also not 192.0.2.80, where a relay's exit policy lets every client of Tor in.
    raise ConfigError(f"metrics are not served at {endpoint.host}", hint="use 127.0.0.1:PORT, [::1]:PORT or unix:PATH")


def listen(endpoint: Endpoint) -> socket.socket:
    """The listening socket; a unix socket is for who runs serve. Raises ConfigError."""
    if endpoint.path is not None:
        return listen_private(endpoint.path)
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(_BACKLOG)
    except OSError as why:
        sock.close()
        raise ConfigError(f"cannot serve metrics at {endpoint}: {why.strerror}") from why
    return sock


class Scrape:
    """Answers GET /metrics with `text()`."""

    def __init__(self, text: Callable[[], bytes], content_type: str) -> None:
        self._is_port = False
        self._text = text
        self._content_type = content_type
        self._maybe_server: asyncio.Server | None = None
        self._clients = 0

    async def open(self, listener: socket.socket) -> None:
        """Begin, in the running event loop."""
        self._is_port = listener.family != socket.AF_UNIX
        self._maybe_server = await asyncio.start_server(self._receive, sock=listener, limit=_HEAD_BYTES)

    def close(self) -> None:
        """Answer no more."""
        if self._maybe_server is not None:
            self._maybe_server.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= _MOST_CLIENTS:
                async with asyncio.timeout(_CLIENT_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._clients -= 1
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLIENT_S):
                    await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        verb, path, *_ = [*head.split(b"\r\n", 1)[0].split(b" "), b"", b""]
        if self._is_port and not _is_for_us(head):
            return _response("421 Misdirected Request", "text/plain", b"metrics are for this machine\n")
        if verb not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
        if path.split(b"?")[0] != b"/metrics":
            return _response("404 Not Found", "text/plain", b"metrics are at /metrics\n")
        return _response("200 OK", self._content_type, self._text(), body=verb == b"GET")


def _is_for_us(head: bytes) -> bool:
    """Whether it asks for this machine by its address. A page that the operator looks at can have its own name lead to
    127.0.0.1 (DNS rebinding), and its browser would let it read our answer; the name is in `Host`."""
    hosts = [line[5:].strip().decode("latin-1") for line in head.split(b"\r\n")[1:] if line[:5].lower() == b"host:"]
    return all(_is_local(host) for host in hosts)


def _is_local(host: str) -> bool:
    found = _HOST.fullmatch(host)
    name = (found[1] or found[2]) if found is not None else ""
    return name.lower() == "localhost" or _is_loopback(name)


def _response(status: str, content_type: str, content: bytes, *, body: bool = True) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + (content if body else b"")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # `localhost` too: what a name leads to is for others to say.
        return False
