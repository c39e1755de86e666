"""What an observer of the client's link sees: a SOCKS5 forwarder between a tor and its guards that notes TLS records.

Run by `lab`, as `recorder.py PORT FILE`; a tor goes through it with `Socks5Proxy`, which only its connections to relays
use. FILE gets a line for each record: the time (monotonic, seconds), `up` or `down`, bytes, which connection.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from bento_tor.egress.socks5 import Parser, Reply, reply

_PIECE_BYTES = 64 * 1024
_HEADER_BYTES = 5
_NUMBERS = itertools.count(1)


class Records:
    """One direction of one connection: bytes in, a line for each whole record."""

    def __init__(self, name: str, number: int, out: TextIO) -> None:
        self._name = name
        self._number = number
        self._out = out
        self._header = bytearray()
        self._left = 0

    def add(self, data: bytes) -> None:
        """Some bytes have passed. A record is noted when its header has."""
        now, at = time.monotonic(), 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == _HEADER_BYTES:
                    self._left = int.from_bytes(self._header[3:], "big")
                    self._out.write(f"{now:.6f} {self._name} {_HEADER_BYTES + self._left} {self._number}\n")
                    self._header.clear()
            at += step


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, out: TextIO) -> None:
    """One connection of tor's."""
    parser, request = Parser(), None
    while request is None:
        answer, request = parser.feed(await reader.read(_PIECE_BYTES))
        writer.write(answer)
    try:
        far_reader, far_writer = await asyncio.open_connection(str(request.host), request.port)
    except OSError:
        writer.write(reply(Reply.REFUSED))
        writer.close()
        return
    writer.write(reply(Reply.OK))
    number = next(_NUMBERS)
    for each in (writer, far_writer):
        each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.gather(
        _one_way(reader, far_writer, Records("up", number, out)),
        _one_way(far_reader, writer, Records("down", number, out)),
    )


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, records: Records) -> None:
    try:
        while data := await reader.read(_PIECE_BYTES):
            records.add(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def main() -> None:
    port, file = int(sys.argv[1]), Path(sys.argv[2])
    with file.open("w", buffering=1) as out:
        await asyncio.start_server(lambda reader, writer: carry(reader, writer, out), "127.0.0.1", port)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
