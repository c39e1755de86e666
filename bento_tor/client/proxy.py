"""A SOCKS5 port on this machine whose connections leave at a box. Owns the listening socket and the local connections.

Whoever connects is hostile, too: any program of this machine can, and a page in a browser can send bytes to it. A
greeting has a deadline and a bounded length, there are only so many connections, and a local program that takes nothing
stops its own connection only.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from bento_tor.client.mux import MOST, Reset, Stream, Streams, Unopened
from bento_tor.egress.socks5 import Parser, Reply, Request, Unanswerable, reply
from bento_tor.errors import ConfigError, RemoteProtocolError

_GREETING_S = 10.0
_FAREWELL_S = 1.0
_READ_BYTES = 32 * 1024
# Closed without a farewell (SO_LINGER: on, 0 seconds): the peer sees that it broke.
_AT_ONCE = struct.pack("@ii", 1, 0)
# Accepting is not given up because descriptors have run out for a moment.
_PAUSE_S = 0.1


class Listener:
    """A listening socket of ours. A context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


def listen(address: str, *, exposed: bool = False) -> Listener:
    """Listen at HOST:PORT. Raises ConfigError where that cannot be had, or is not loopback and not `exposed`: whoever
    reaches this port uses the box in our name."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        where, number = ipaddress.ip_address(host), int(port)
        if not 0 <= number < 65536:
            raise ValueError(port)
    except ValueError as why:
        raise ConfigError(f"{address!r} is no address to listen at", hint="for instance 127.0.0.1:1080") from why
    if not where.is_loopback and not exposed:
        raise ConfigError(
            f"{host} can be reached from other machines, and whoever reaches it uses the box in your name",
            hint="listen at 127.0.0.1, or insist with --exposed",
        )
    try:
        family = socket.AF_INET if where.version == 4 else socket.AF_INET6
        return Listener(socket.create_server((host, number), family=family, backlog=128))
    except OSError as why:
        raise ConfigError(f"cannot listen at {address}: {why.strerror}") from why


class Messages(Protocol):
    """A session, or one under cover."""

    def send(self, data: bytes) -> bool:
        """Send one message. False: it has ended."""

    def __iter__(self) -> Iterator[bytes]:
        """Messages, until it ends."""


class Proxy:
    """Serves a listening socket over one session of functions/proxy.py, in threads, until the session ends.

    A context manager: leaving it ends every local connection; the listening socket stays the caller's."""

    def __init__(self, session: Messages, listener: Listener) -> None:
        self.streams = Streams(session.send)
        self._session = session
        self._listener = listener.sock
        self._lock = threading.Lock()
        self._locals: set[socket.socket] = set()
        self._closed = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._listener.settimeout(_PAUSE_S)
        self._accepting.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self.streams.close()
        self._accepting.join(timeout=5.0)
        with self._lock:
            for sock in self._locals:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Carry until the session ends. Raises RemoteProtocolError for what its function may not say, and what breaks
        the session."""
        for message in self._session:
            self.streams.take(message)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                self._closed.wait(_PAUSE_S)
                continue
            with self._lock:
                full = len(self._locals) >= MOST
                if not full:
                    self._locals.add(sock)
            if full:
                sock.close()
            else:
                threading.Thread(target=self._serve, args=(sock,), name="proxied", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock, suppress(OSError, Reset, RemoteProtocolError):
                self._talk(sock)
        finally:
            with self._lock:
                self._locals.discard(sock)

    def _talk(self, sock: socket.socket) -> None:
        try:
            request = _heard(sock)
            stream = self.streams.open(str(request.host), request.port)
        except Unanswerable as why:
            sock.sendall(why.answer)
            return
        except (Unopened, Reset) as why:
            sock.sendall(reply(why.code if isinstance(why, Unopened) else Reply.FAILED))
            return
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up = threading.Thread(target=_up, args=(sock, stream, request.early), name="proxied up", daemon=True)
        up.start()
        try:
            sock.sendall(reply(Reply.OK))
            while data := stream.receive():
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            up.join()
        except (OSError, Reset):
            stream.reset()
            # Not a clean end, and whoever reads must not take it for one.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                sock.shutdown(socket.SHUT_RD)
            up.join(timeout=_FAREWELL_S)


def _up(sock: socket.socket, stream: Stream, early: bytes) -> None:
    try:
        stream.send(early)
        while data := sock.recv(_READ_BYTES):
            stream.send(data)
        stream.end()
    except (OSError, Reset):
        stream.reset()


def _heard(sock: socket.socket) -> Request:
    """The request. Raises RemoteProtocolError, Unanswerable, OSError."""
    parser, deadline = Parser(), time.monotonic() + _GREETING_S
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        data = sock.recv(_READ_BYTES)
        if not data:
            raise RemoteProtocolError("hung up before the request")
        answer, request = parser.feed(data)
        sock.sendall(answer)
        if request is not None:
            return request
