"""The function's side of egress. Text that travels into the sandbox, beside the driver: standard library only.

The sandbox has no route; it has a unix socket, and behind that a SOCKS5 server. Here is the forwarder, which offers
that socket on 127.0.0.1:1080 (for programs that know a proxy), and what makes Python's own `socket` go that way, so
that requests, urllib and create_connection work unchanged. It is a convenience and no wall: who goes round it finds
no network (ENETUNREACH).

Names are resolved at the other end: `getaddrinfo` gives a name back as its own address, and connect() sends it.
`install` starts the forwarder's thread and patches `socket`; call it once, before any of the function's code.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DOOR = "/run/egress.sock"
HOST, PORT = "127.0.0.1", 1080
_PIECE_BYTES = 64 * 1024
_BACKLOG = 64
_RETRY_MS = 100
_CONNECT_S = 150.0
_CONNECT, _IPV4, _NAME, _IPV6 = 1, 1, 3, 4
_SERVICES = {"http": 80, "https": 443}
# The answers of the broker (egress/socks5.py) and of tor: the error's number, and its sentence.
_REFUSALS = {
    1: (errno.ECONNABORTED, "the connection failed"),
    2: (errno.EACCES, "this box's policy does not allow it"),
    3: (errno.ENETUNREACH, "the network is unreachable"),
    4: (errno.EHOSTUNREACH, "there is no such host, or this box's policy does not allow it"),
    5: (errno.ECONNREFUSED, "connection refused"),
    6: (errno.ETIMEDOUT, "it does not answer"),
    0x90: (errno.EMFILE, "the function has as many connections open as this box's policy allows"),
    0x91: (errno.EDQUOT, "the function has sent or received as much as this box's policy allows"),
    0x92: (errno.EDQUOT, "the function has asked for as many names as this box's policy allows"),
    0x93: (errno.EACCES, "the function's manifest does not name it in 'hosts'"),
    0xF0: (errno.EHOSTUNREACH, "the onion service's descriptor was not found"),
    0xF1: (errno.EHOSTUNREACH, "the onion service's descriptor cannot be read"),
    0xF2: (errno.EHOSTUNREACH, "the onion service did not answer the introduction"),
    0xF3: (errno.EHOSTUNREACH, "the rendezvous with the onion service failed"),
    0xF4: (errno.EACCES, "the onion service wants client authorization"),
    0xF5: (errno.EACCES, "the onion service refuses this client's authorization"),
    0xF6: (errno.EINVAL, "this is no onion address"),
    0xF7: (errno.ETIMEDOUT, "the onion service does not answer the introduction"),
}
_real_getaddrinfo = socket.getaddrinfo


class Socket(socket.socket):
    """A socket whose TCP connections leave through the broker. Everything else is as it was."""

    _peer: tuple[Any, ...] | None = None

    def connect(self, address: Any) -> None:
        """Connect to (host, port), by way of the broker. Raises OSError with what it says."""
        if not self._leaves(address):
            super().connect(address)
            return
        timeout = self.gettimeout()
        # Asked and answered in one go, also on a non-blocking socket: the answer is part of connecting.
        self.settimeout(timeout or _CONNECT_S)
        try:
            super().connect((HOST, PORT) if self.family == socket.AF_INET else (f"::ffff:{HOST}", PORT))
            self._ask(address[0], int(address[1]))
        finally:
            self.settimeout(timeout)
        self._peer = tuple(address)

    def connect_ex(self, address: Any) -> int:
        """The same, with an error's number instead of the error."""
        try:
            self.connect(address)
        except OSError as why:
            return why.errno or errno.ECONNABORTED
        return 0

    def getpeername(self) -> Any:
        """Where it is connected to, as asked for."""
        return super().getpeername() if self._peer is None else self._peer

    def _leaves(self, address: Any) -> bool:
        inet = self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM
        return inet and isinstance(address, tuple) and len(address) >= 2 and not is_inside(address[0])

    def _ask(self, host: str, port: int) -> None:
        self.sendall(b"\x05\x01\x00" + request(host, port))
        self._exactly(2)
        head = self._exactly(4)
        self._exactly(6 if head[3] == _IPV4 else 18 if head[3] == _IPV6 else self._exactly(1)[0] + 2)
        if head[1]:
            number, sentence = _REFUSALS.get(head[1], (errno.ECONNABORTED, f"SOCKS5 error {head[1]:#x}"))
            raise OSError(number, f"no connection to {host}:{port}: {sentence}")

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.recv(count - len(data))
            if not piece:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the box hangs up")
            data += piece
        return data


def request(host: str, port: int) -> bytes:
    """What is asked of the broker."""
    if not 0 < port < 65536:
        raise OverflowError("port must be 1-65535")
    for family, kind in ((socket.AF_INET, _IPV4), (socket.AF_INET6, _IPV6)):
        try:
            where = bytes([kind]) + socket.inet_pton(family, host)
            break
        except OSError:
            pass
    else:
        name = _ascii(host)
        where = bytes([_NAME, len(name)]) + name
    return bytes([5, _CONNECT, 0]) + where + port.to_bytes(2, "big")


def is_inside(host: object) -> bool:
    """Whether a host is this sandbox itself: a function may well talk to a server of its own."""
    if not isinstance(host, str):
        return False
    # The unspecified address is a way to write loopback.
    if host in ("", "localhost", "::1", "0.0.0.0", "::"):  # noqa: S104
        return True
    return host.startswith("127.") and host.replace(".", "").isdigit()


def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> list[Any]:
    """As socket.getaddrinfo; a name's address is the name itself."""
    if isinstance(host, bytes):
        host = host.decode("ascii")
    if host == HOST and port == PORT:
        reword()
    if host == "localhost":
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    numeric = socket.AI_NUMERICHOST | flags
    try:
        return _real_getaddrinfo(host, _port(port), family, type, proto, numeric)
    except socket.gaierror:
        if flags & socket.AI_NUMERICHOST or not host:
            raise
    if type not in (0, socket.SOCK_STREAM) or family not in (0, socket.AF_INET, socket.AF_INET6):
        raise socket.gaierror(socket.EAI_NONAME, "a function has no way to send datagrams")
    _ascii(host)
    family = family or socket.AF_INET
    where = (host, _port(port) or 0, 0, 0)[: 2 if family == socket.AF_INET else 4]
    return [(socket.AddressFamily(family), socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)]


def reword() -> None:
    """Somebody asks for the forwarder's own address: PySocks, which gets the sentences above for its numbers."""
    known = getattr(sys.modules.get("socks"), "SOCKS5_ERRORS", None)
    if isinstance(known, dict):
        known.update({number: sentence for number, (_, sentence) in _REFUSALS.items()})


def install() -> None:
    """Start the forwarder, and let Python's sockets go through it."""
    listener = socket.create_server((HOST, PORT), backlog=_BACKLOG)
    _thread.start_new_thread(Forwarder(listener, DOOR).run, ())
    socket.socket = Socket  # type: ignore[misc]
    socket.getaddrinfo = getaddrinfo
    # Not HTTP_PROXY: urllib knows no SOCKS, and needs none here.
    os.environ["ALL_PROXY"] = os.environ["all_proxy"] = f"socks5h://{HOST}:{PORT}"  # noqa: SIM112


def connect(host: str, port: int, timeout: float | None = None) -> socket.socket:
    """What `api.connect` is: a connected socket. Raises OSError with the reason."""
    return socket.create_connection((host, port), timeout)


class Forwarder:
    """Hands each connection on a loopback port to the broker's socket, in one thread, without looking at it."""

    def __init__(self, listener: socket.socket, door: str) -> None:
        self._listener = listener
        self._door = door
        self._poll = select.poll()
        self._deaf = False
        # By descriptor: each end knows the other, and what it still has to write.
        self._ends: dict[int, End] = {}

    def run(self) -> None:
        """Serve until the process ends."""
        self._listener.setblocking(False)
        self._listen()
        while True:
            ready = self._poll.poll(_RETRY_MS if self._deaf else None)
            if self._deaf and not ready:
                self._listen()
            for fd, events in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif (end := self._ends.get(fd)) is not None:
                    self._move(end, events)

    def _listen(self) -> None:
        self._deaf = False
        self._poll.register(self._listener.fileno(), select.POLLIN)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            # No descriptors left: asking again at once, and again, would burn the function's own time.
            self._deaf = True
            self._poll.unregister(self._listener.fileno())
            return
        try:
            far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            near.close()
            return
        try:
            far.connect(self._door)
        except OSError:
            near.close()
            far.close()
            return
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one, other = End(near), End(far)
        one.other, other.other = other, one
        for end in (one, other):
            end.sock.setblocking(False)
            self._ends[end.sock.fileno()] = end
            self._watch(end)

    def _move(self, end: End, events: int) -> None:
        try:
            if events & select.POLLOUT:
                end.write()
            if events & (select.POLLIN | select.POLLHUP) and end.reads():
                end.read()
            alive = not events & (select.POLLERR | select.POLLNVAL)
        except OSError:
            alive = False
        if not alive or (end.finished() and end.other.finished()):
            self._drop(end)
            return
        for each in (end, end.other):
            self._watch(each)

    def _watch(self, end: End) -> None:
        """Wait for what it wants. Who wants nothing is not asked: a hang-up would be told again and again."""
        wanted = end.wants()
        if wanted == end.watched:
            return
        if wanted:
            self._poll.register(end.sock.fileno(), wanted)
        else:
            self._poll.unregister(end.sock.fileno())
        end.watched = wanted

    def _drop(self, end: End) -> None:
        for each in (end, end.other):
            if each.watched:
                self._poll.unregister(each.sock.fileno())
            del self._ends[each.sock.fileno()]
            each.sock.close()
        if self._deaf:
            self._listen()


class End:
    """One end of a forwarded connection. `pending`: what came from the other end and is still to be written."""

    other: End

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pending = b""
        self.watched = 0
        self.ended = False
        self.shut = False

    def reads(self) -> bool:
        """Whether there is room for what comes."""
        return not self.ended and not self.other.pending

    def finished(self) -> bool:
        """Whether nothing more comes from here, nor goes there."""
        return self.ended and self.shut

    def wants(self) -> int:
        """What to wait for."""
        return (select.POLLIN if self.reads() else 0) | (select.POLLOUT if self.pending else 0)

    def read(self) -> None:
        """Take what has come, and pass it on."""
        try:
            data = self.sock.recv(_PIECE_BYTES)
        except BlockingIOError:
            return  # the event was of a connection that had this number before
        self.ended = not data
        self.other.pending = data
        self.other.write()

    def write(self) -> None:
        """Write what is pending, and the end behind it."""
        if self.pending:
            try:
                self.pending = self.pending[self.sock.send(self.pending) :]
            except BlockingIOError:
                return
        if not self.pending and self.other.ended and not self.shut:
            self.shut = True
            self.sock.shutdown(socket.SHUT_WR)


def _ascii(host: str) -> bytes:
    try:
        name = host.encode("ascii") if host.isascii() else host.encode("idna")
    except UnicodeError:
        name = b""
    if not 0 < len(name) < 256:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return name


def _port(port: Any) -> int | None:
    if isinstance(port, str | bytes):
        text = port if isinstance(port, str) else port.decode("ascii")
        port = _SERVICES.get(text, text)
    return None if port is None else int(port)
