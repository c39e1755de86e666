"""`api.tor`, as a function sees it: a narrow way to the box's own tor. Text that travels; standard library only.

The box sends it before the code, to functions whose manifest names Tor routines that its policy offers; the driver
runs it, and makes `Tor(api)` the function's `api.tor`. Questions go to the box as frames (driver.py describes them).
Bytes go through a unix socket of the sandbox's own to the gate: a connection there says a ticket of 16 bytes, hears
one byte (0: it stands), and is then the stream itself. Nothing here can name a hop, or a circuit of anybody else's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
from typing import Any

TOR, TOR_REFUSED = 0x8A, 0x0D
CONNECT, NEW_CIRCUIT, CIRCUITS, CLOSE_CIRCUIT, PUBLISH, NETWORK, WITHDRAW = 1, 2, 3, 4, 5, 6, 7
DOOR = "/run/tor.sock"
# At once, of one service: each takes two threads, and a function has few.
CARRIED_MAX = 8
_PIECE_BYTES = 64 * 1024
_RETRY_S = 1.0
# What the gate and tor say to a connection that comes to nothing.
_REFUSALS = {
    2: (errno.EACCES, "this box does not allow it"),
    4: (errno.EHOSTUNREACH, "there is no such host"),
    5: (errno.ECONNREFUSED, "connection refused"),
    6: (errno.ETIMEDOUT, "it does not answer"),
    0x90: (errno.EMFILE, "the function has as many connections open as this box's policy allows"),
    0x91: (errno.EDQUOT, "the function has sent as much as this box's policy allows"),
    0x93: (errno.EACCES, "the function's manifest does not name it in 'hosts'"),
    0xF0: (errno.EHOSTUNREACH, "the onion service's descriptor was not found"),
    0xF4: (errno.EACCES, "the onion service wants client authorization"),
    0xF6: (errno.EINVAL, "this is no onion address"),
}


class Tor:
    """The box's tor, as far as the manifest asks and the policy allows. All that is made here ends with the session."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def connect(
        self, host: str, port: int, *, circuit: int | None = None, timeout_s: float | None = None
    ) -> socket.socket:
        """A stream to a host or an onion service, in a circuit that nobody else's streams share: the session's first
        one, or that of `new_circuit`. Raises OSError with the reason."""
        told = self._ask(CONNECT, host=host, port=port, handle=circuit or 0)
        stream = _through_door(told["ticket"])
        try:
            stream.settimeout(timeout_s)
            _hear(stream, f"{host}:{port}")
            stream.settimeout(None)
        except BaseException:
            stream.close()
            raise
        return stream

    def new_circuit(self) -> int:
        """Another circuit of the session's own, for `connect(circuit=...)`: tor chooses its hops, and builds it when it
        is first used. Raises PermissionError where the box hides, OSError (EDQUOT) after too many in an hour."""
        return int(self._ask(NEW_CIRCUIT)["circuit"])

    def circuits(self) -> list[dict[str, Any]]:
        """The session's own: `circuit` (its number here), `status` as tor has it (UNUSED: not built), `hops`."""
        found: list[dict[str, Any]] = self._ask(CIRCUITS)["circuits"]
        return found

    def close_circuit(self, circuit: int) -> None:
        """End it, and the streams on it. Raises KeyError where the session has no such circuit."""
        self._ask(CLOSE_CIRCUIT, handle=circuit)

    def publish(self, port: int, local: int | None = None, *, timeout_s: float | None = None) -> Service:
        """An onion service that ends in this sandbox: its `port` leads to a server of the function's own on 127.0.0.1,
        at `local` (the same number, if it is not given). Returns once the directories have its descriptors. It ends
        with the session, or by its `close`. Raises OSError."""
        told = self._ask(PUBLISH, port=port)
        service = Service(self, told, local or port)
        try:
            with _through_door(told["news"]) as news:
                news.settimeout(timeout_s)
                _hear(news, told["address"])
        except BaseException:
            service.close()
            raise
        return service

    def network(self) -> list[dict[str, Any]]:
        """The relays of the consensus: `nickname`, `fingerprint`, `flags`, `bandwidth` (the consensus' own unit)."""
        found: dict[str, dict[str, Any]] = {}
        start, total = 0, 1
        while start < total:
            told = self._ask(NETWORK, handle=start)
            total = told["total"]
            for nickname, fingerprint, flags, bandwidth in told["relays"]:
                found[fingerprint] = {
                    "nickname": nickname,
                    "fingerprint": fingerprint,
                    "flags": flags.split(),
                    "bandwidth": bandwidth,
                }
            start += max(1, len(told["relays"]))
        return list(found.values())

    def _ask(self, verb: int, *, host: str = "", port: int = 0, handle: int = 0) -> dict[str, Any]:
        if not 0 <= port < 65536 or not 0 <= handle < 1 << 62:
            raise ValueError("a number that is out of range")
        numbers = bytes([verb]) + port.to_bytes(2, "big") + handle.to_bytes(8, "big")
        name = host.encode("ascii") if host.isascii() else host.encode("idna")
        if len(name) > 253:
            raise ValueError("no host has so long a name")
        with self._api._receiving:
            self._api._wire.write(TOR, numbers + name)
            kind, body = self._api._wait_answer()
        if kind == TOR_REFUSED:
            raise _refusal(body.decode())
        told: dict[str, Any] = json.loads(body)
        return told


class Service:
    """An onion service of the function's. `address`: with its `.onion`."""

    def __init__(self, tor: Tor, told: dict[str, Any], local: int) -> None:
        self.address: str = told["address"]
        self._tor = tor
        self._handle: int = told["service"]
        self._ticket: str = told["ticket"]
        self._local = local
        self._places = threading.BoundedSemaphore(CARRIED_MAX)
        self._closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take it down."""
        if not self._closed.is_set():
            self._closed.set()
            self._tor._ask(WITHDRAW, handle=self._handle)

    def _serve(self) -> None:
        """One connection waits at the gate; when somebody comes by it, the next one."""
        while not self._closed.is_set():
            self._places.acquire()
            try:
                far = _through_door(self._ticket)
            except OSError:
                self._places.release()
                self._closed.wait(_RETRY_S)
                continue
            try:
                come = far.recv(1) == b"\0"
                if come:
                    _Carried(socket.create_connection(("127.0.0.1", self._local)), far, self._places)
                    continue
            except (OSError, RuntimeError):  # nobody listens here, or there are no more threads
                come = True
            far.close()
            self._places.release()
            if not come:  # the gate has hung up
                self._closed.wait(_RETRY_S)


class _Carried:
    """One visitor's connection, until both directions have ended."""

    def __init__(self, near: socket.socket, far: socket.socket, places: threading.BoundedSemaphore) -> None:
        self._ends = (near, far)
        self._places = places
        self._lock = threading.Lock()
        self._left = 2
        try:
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
        except RuntimeError:
            near.close()
            raise
        try:
            threading.Thread(target=self._pump, args=(far, near), daemon=True).start()
        except RuntimeError:
            far.shutdown(socket.SHUT_RDWR)
            self._done()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_PIECE_BYTES):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        finally:
            self._done()

    def _done(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        for end in self._ends:
            end.close()
        self._places.release()


def _through_door(ticket: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(DOOR)
        stream.sendall(bytes.fromhex(ticket))
    except BaseException:
        stream.close()
        raise
    return stream


def _hear(stream: socket.socket, what: str) -> None:
    answer = stream.recv(1)
    if answer != b"\0":
        code = answer[0] if answer else 1
        number, sentence = _REFUSALS.get(code, (errno.ECONNABORTED, f"tor says {code:#04x}"))
        raise OSError(number, f"{what}: {sentence}")


def _refusal(text: str) -> Exception:
    word, _, sentence = text.partition(" ")
    if word == "missing":
        return KeyError(sentence)
    if word == "full":
        return OSError(errno.EDQUOT, sentence)
    if word == "unavailable":
        return ConnectionError(errno.ECONNABORTED, sentence)
    return PermissionError(errno.EACCES, sentence)
