"""What stands beside the box of a bench: raw streams to compare with, and a door to the box that counts bytes.

A process of its own, so that it does not take turns with the client in one interpreter. Run by `lab`, as
`beside.py RAW COUNTING BOX`, each HOST:PORT. A raw stream begins with one letter and eight bytes, a length:

    e  echo everything from there on
    s  send so many bytes, then end
    k  take so many bytes, then answer with one
    c  how many bytes went through the counting door: eight bytes from clients, eight bytes to them
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

COMMAND = struct.Struct("!cQ")
COUNTS = struct.Struct("!QQ")
READ_BYTES = 256 * 1024
_WRITE_BYTES = 64 * 1024


@dataclass
class Counts:
    """Bytes that went through the counting door."""

    up: int = 0
    down: int = 0


def main() -> None:
    raw, counting, box = ((host, int(port)) for host, _, port in (text.partition(":") for text in sys.argv[1:4]))
    counts = Counts()
    for address, serve in (
        (raw, lambda sock: answer(sock, counts)),
        (counting, lambda sock: pass_on(sock, box, counts)),
    ):
        threading.Thread(target=accept, args=(socket.create_server(address), serve), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


def accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """A thread for each connection."""
    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=ended, args=(sock, serve), daemon=True).start()


def ended(sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve it, and close it."""
    with sock, suppress(OSError):
        serve(sock)


def answer(sock: socket.socket, counts: Counts) -> None:
    """One raw stream."""
    letter, length = COMMAND.unpack(exactly(sock, COMMAND.size))
    match letter:
        case b"e":
            while data := sock.recv(READ_BYTES):
                sock.sendall(data)
        case b"s":
            piece = memoryview(bytes(_WRITE_BYTES))
            for start in range(0, length, _WRITE_BYTES):
                sock.sendall(piece[: length - start])
        case b"k":
            drain(sock, length)
            sock.sendall(b"k")
        case b"c":
            sock.sendall(COUNTS.pack(counts.up, counts.down))


def pass_on(near: socket.socket, box: tuple[str, int], counts: Counts) -> None:
    """One connection to the box, counted."""
    with socket.create_connection(box) as far:
        back = threading.Thread(target=carry, args=(far, near, counts, "down"))
        back.start()
        carry(near, far, counts, "up")
        back.join()


def carry(source: socket.socket, target: socket.socket, counts: Counts, name: str) -> None:
    """One direction; its end too."""
    with suppress(OSError):
        while data := source.recv(READ_BYTES):
            setattr(counts, name, getattr(counts, name) + len(data))
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def exactly(sock: socket.socket, length: int) -> bytes:
    """So many bytes. Raises ConnectionError where they end before."""
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise ConnectionError("the stream ended")
        data += piece
    return data


def drain(sock: socket.socket, length: int) -> None:
    """Take so many bytes, and throw them away. Raises ConnectionError where they end before."""
    while length:
        piece = sock.recv(min(length, READ_BYTES))
        if not piece:
            raise ConnectionError("the stream ended")
        length -= len(piece)


if __name__ == "__main__":
    main()
