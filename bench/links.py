"""Links with a delay, for kernels without netem: a process that carries every connection between relays.

The kernel redirects connections to given ports of 127.0.0.1 here; bytes read now are written `delay` later, each way.
Owns its nftables table, which goes with the network namespace. Run by `lab`; the delay comes on standard input, in
milliseconds, one line for each change.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

PORT = 5555
_MARK = 7  # of our own connections, which are not redirected again
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; Python has no name for it
_PIECE_BYTES = 64 * 1024
_WAITING_PIECES = 256


class Links:
    """All connections that are redirected here."""

    def __init__(self) -> None:
        self.delay_s = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        raw = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        port, address = struct.unpack_from("!2xH4s", raw)
        onward = socket.socket()
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        onward.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(onward, (socket.inet_ntoa(address), port))
            far_reader, far_writer = await asyncio.open_connection(sock=onward)
        except OSError:
            onward.close()
            writer.close()
            return
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(self._one_way(reader, far_writer), self._one_way(far_reader, writer))

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reading goes on while earlier pieces wait for their time: a delay, not a speed limit."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_PIECES)
        delivery = asyncio.create_task(_deliver(waiting, writer))
        now = asyncio.get_running_loop().time
        try:
            while data := await reader.read(_PIECE_BYTES):
                await waiting.put((now() + self.delay_s, data))
        except ConnectionError:
            pass
        await waiting.put((now() + self.delay_s, b""))
        await delivery


async def _deliver(waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    now = asyncio.get_running_loop().time
    broken = False
    while True:
        due, data = await waiting.get()
        if (left_s := due - now()) > 0:
            await asyncio.sleep(left_s)
        if not data:
            writer.close()
            return
        try:
            if not broken:
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            broken = True  # the reading goes on, so that its peer learns of it by its own end


def redirect(ports: Sequence[int | str]) -> None:
    """New connections to these ports of 127.0.0.1 (numbers or ranges) come here, and no others. In this namespace."""
    listed = ", ".join(map(str, ports))
    rules = f"""
        table ip links {{}}
        delete table ip links
        table ip links {{
            chain leaving {{
                type nat hook output priority -100;
                ip daddr 127.0.0.1 tcp dport {{ {listed} }} meta mark != {_MARK} redirect to :{PORT}
            }}
        }}
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


async def _serve() -> None:
    links = Links()
    await asyncio.start_server(links.carry, "127.0.0.1", PORT, backlog=1024)
    print("ready", flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        links.delay_s = float(line) / 1000
        print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
