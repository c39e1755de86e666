"""A SOCKS port that leads to servers of a test's own, by the onion address that is asked for: what is not about tor
need not wait for it. It notes the isolation words that it hears, and how many streams stand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from bento_tor.controller.onion import onion_address

NOT_PUBLISHED = 0xF0
# An address that leads nowhere.
NOWHERE = onion_address(b"nowhere".ljust(32, b"."))


class Switch:
    """`lead(address)` names a server: a unix socket's path, or what is called with each stream."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.standing = 0
        self._leads: dict[str, str | Callable[[socket.socket], object]] = {}
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def lead(self, address: str, target: str | Callable[[socket.socket], object]) -> str:
        """From now on that address leads there."""
        self._leads[address] = target
        return address

    def lead_new(self, name: str, target: Callable[[socket.socket], object]) -> str:
        """The same for an address of its own."""
        return self.lead(onion_address(name.encode().ljust(32, b".")), target)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._server.accept()[0],), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError, EOFError):
            exactly(conn, 1 + 1 + 1)
            conn.sendall(b"\x05\x02")
            user = exactly(conn, exactly(conn, 2)[1]).decode()
            exactly(conn, exactly(conn, 1)[0])
            conn.sendall(b"\x01\x00")
            exactly(conn, 4)
            host = exactly(conn, exactly(conn, 1)[0]).decode()
            port = int.from_bytes(exactly(conn, 2), "big")
            with self._lock:
                self.words.append(user)
                self.asked.append((host, port))
            target = self._leads.get(host)
            code = NOT_PUBLISHED if target is None else 0
            conn.sendall(bytes([5, code, 0, 1]) + bytes(6))
            if target is None:
                return
            with self._lock:
                self.standing += 1
            try:
                target(conn) if callable(target) else relay(conn, target)
            finally:
                with self._lock:
                    self.standing -= 1


def exactly(conn: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = conn.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def relay(conn: socket.socket, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        back = threading.Thread(target=_pump, args=(other, conn))
        back.start()
        _pump(conn, other)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
