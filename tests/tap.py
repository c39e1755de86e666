"""A wire-tap: a socket that hands everything on, and writes down how many bytes came from the box, and when."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# What a SOCKS5 server says before the stream begins: the method, the password's welcome, the answer with an IPv4.
SOCKS_BYTES = 2 + 2 + 10


@dataclass
class Tapped:
    """One connection. `down`: from the box's side, as (seconds since it began, bytes); `up`: the other way."""

    before: int
    began_at: float = field(default_factory=time.monotonic)
    up: list[tuple[float, int]] = field(default_factory=list)
    down: list[tuple[float, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def received(self) -> int:
        """Bytes that came from the box, once the connection is over."""
        assert self.over.wait(30), "the connection still stands"
        return sum(size for _, size in self.down) - self.before

    @property
    def sent(self) -> int:
        return sum(size for _, size in self.up)

    @property
    def answered_at_s(self) -> float:
        """When the first byte came from the box: its Welcome, or as much as came with it."""
        total = 0
        for at, size in self.down:
            total += size
            if total > self.before:
                return at
        raise AssertionError("the box said nothing")

    @property
    def bulk_at_s(self) -> float:
        """When the first large piece came, since the box's first answer."""
        return next(at for at, size in self.down if size > 4000) - self.answered_at_s

    @property
    def last_at_s(self) -> float:
        return self.down[-1][0] - self.answered_at_s


class Tap:
    """Between a client and `target`, a unix socket or a TCP port of this machine (`socks`: tor's)."""

    def __init__(self, target: Path | tuple[str, int], path: Path | None = None, *, socks: bool = False) -> None:
        self.tapped: list[Tapped] = []
        self._target = target
        self._before = SOCKS_BYTES if socks else 0
        self._server = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._server.bind(str(path) if path else ("127.0.0.1", 0))
        self._server.listen()
        name = self._server.getsockname()
        self.address = name if path else f"{name[0]}:{name[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near = self._server.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX if isinstance(self._target, Path) else socket.AF_INET)
            far.connect(str(self._target) if isinstance(self._target, Path) else self._target)
            for each in (near, far):
                if each.family == socket.AF_INET:
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one = Tapped(self._before)
            self.tapped.append(one)
            ways = [
                threading.Thread(target=self._carry, args=(one, near, far, one.up), daemon=True),
                threading.Thread(target=self._carry, args=(one, far, near, one.down), daemon=True),
            ]
            for way in ways:
                way.start()
            threading.Thread(target=self._finish, args=(one, ways, near, far), daemon=True).start()

    @staticmethod
    def _finish(one: Tapped, ways: list[threading.Thread], *ends: socket.socket) -> None:
        for way in ways:
            way.join()
        for end in ends:
            end.close()
        one.over.set()

    @staticmethod
    def _carry(one: Tapped, source: socket.socket, sink: socket.socket, noted: list[tuple[float, int]]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                noted.append((time.monotonic() - one.began_at, len(data)))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
