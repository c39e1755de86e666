"""How bytes travel between a client and a box. Owns the seam (`Stream`, `Transport`), and streams over a socket and
in memory.

Three transports: `route.TorTransport`, `route.UnixTransport`, and `memory.MemoryBox` for people's own tests.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Protocol

from bento_tor.errors import ConnectError

# Linux; other systems go without.
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


class Broken(ConnectError):
    """The connection to the box broke: it stood, or seemed to, and does no more."""

    def __init__(self, message: str = "the connection to the box broke", *, hint: str = "run the command again"):
        super().__init__(message, hint=hint)


class Silent(ConnectError):
    """Nothing came from the function in the time that was given. Its box is there, and it runs."""

    exit_code = 1

    def __init__(self) -> None:
        super().__init__("nothing came from the function in this time", hint="it still runs; --timeout waits longer")


class Stream(Protocol):
    """A connected byte stream. One thread sends while another receives; `close` wakes both."""

    def send(self, data: bytes) -> None:
        """Send all of it, in one write where that is possible.

        Raises OSError where the stream is gone, TimeoutError where the peer takes nothing for too long."""

    def recv(self, max_bytes: int) -> bytes:
        """Some bytes; empty at the end of the stream. Called only after the first `send`.

        Raises TimeoutError where nothing came for a while (it can be called again), OSError where the stream is gone,
        ConnectError or TorError where there was no way to the box after all."""

    def close(self) -> None:
        """Give it up. Harmless when repeated."""


class Transport(Protocol):
    """A way to one box."""

    # Whether each try may cost a new circuit: then a try that failed counts too (see `retries`).
    builds_circuits: bool

    def open(self) -> Stream:
        """A stream to the box; it may be that the box is asked for only by the first `send`.

        Raises ConnectError (the box) or TorError (our own tor)."""


def timeval(seconds: float) -> bytes:
    """The kernel's form of a time, for SO_SNDTIMEO and SO_RCVTIMEO; never 0, which would mean for ever."""
    whole, part = divmod(max(0.001, seconds), 1)
    return struct.pack("@ll", int(whole), int(part * 1e6))


class SocketStream:
    """A stream over a connected socket."""

    def __init__(self, sock: socket.socket, *, timeout_s: float) -> None:
        """`timeout_s`: for how long the peer may take nothing; half of it is how long a `recv` waits."""
        self._sock = sock
        self._is_tcp = sock.family != socket.AF_UNIX
        sock.settimeout(None)
        # Not settimeout, which would count a whole send, however long that is, and make the socket non-blocking.
        for option, seconds in ((socket.SO_SNDTIMEO, timeout_s), (socket.SO_RCVTIMEO, timeout_s / 2)):
            sock.setsockopt(socket.SOL_SOCKET, option, timeval(seconds))
        if self._is_tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._quick_ack()

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        try:
            self._sock.sendall(data)
        except BlockingIOError as why:
            raise TimeoutError("the box takes nothing") from why

    def recv(self, max_bytes: int) -> bytes:
        """See `Stream`."""
        try:
            data = self._sock.recv(max_bytes)
        except BlockingIOError as why:
            raise TimeoutError("nothing came") from why
        self._quick_ack()
        return data

    def close(self) -> None:
        """See `Stream`."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _quick_ack(self) -> None:
        # tor does not set TCP_NODELAY: with a delayed acknowledgement of ours its next small write waits 40 ms. The
        # kernel forgets the option, so it is said again each time.
        if self._is_tcp and _QUICK_ACK is not None:
            with suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)


class MemoryStream:
    """One end of a pair of streams: what is sent here is received there. It takes any number of bytes."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._closed = False
        self._peer = self

    @classmethod
    def pair(cls, *, timeout_s: float = 60.0) -> tuple[MemoryStream, MemoryStream]:
        """Two ends. `timeout_s`: how long a `recv` waits before it says that nothing came."""
        one, other = cls(timeout_s=timeout_s), cls(timeout_s=timeout_s)
        one._peer, other._peer = other, one
        return one, other

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        if self._closed:
            raise BrokenPipeError("closed here")
        peer = self._peer
        with peer._changed:
            if peer._closed:
                raise BrokenPipeError("closed by the peer")
            peer._waiting += data
            peer._changed.notify_all()

    def recv(self, max_bytes: int) -> bytes:
        """See `Stream`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._closed, self._timeout_s):
                raise TimeoutError("nothing came")
            data = bytes(self._waiting[:max_bytes])
            del self._waiting[:max_bytes]
            return data

    def close(self) -> None:
        """See `Stream`. What was sent before is still received there."""
        for end in (self, self._peer):
            with end._changed:
                end._closed = True
                end._changed.notify_all()
