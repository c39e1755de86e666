"""A connection's deadlines: for a frame to become whole, for an upload to arrive, for a client that takes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bento_tor.policy import document, manifest
from bento_tor.policy.document import Policy
from bento_tor.policy.manifest import Manifest
from bento_tor.policy.signature import Signed
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import Connection, Role
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server import visit
from bento_tor.server.desk import Desk
from bento_tor.server.sessions import Sessions
from bento_tor.server.spool import Spool
from bento_tor.server.store import Store
from bento_tor.server.visit import Visit

DIGEST = document.digest(document.encode(Policy()))
HELLO = m.Hello(m.VERSION, DIGEST)
Play = Callable[[socket.socket, Connection], Awaitable[None]]


def visited(folder: Path, play: Play) -> None:
    """A visit against a desk that can start nothing; it has ended when this returns."""

    async def run() -> None:
        signed = Signed(document.encode(Policy()))
        keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spool = Spool(folder, 1 << 20)
        sessions = Sessions(KeeperLink(keeper), running_max=1, kept_s=1.0, spool=spool)
        desk = Desk(signed, Store(folder / "box.db", "x", max_functions=9, function_days=1), sessions)
        ours, box = socket.socketpair()
        ours.setblocking(False)
        staying = asyncio.create_task(Visit(desk, *await asyncio.open_connection(sock=box)).run())
        try:
            async with asyncio.timeout(30):
                await play(ours, Connection(Role.CLIENT))
                await staying
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)
            ours.close()
            keeper.close()
            theirs.close()
            await desk.stop()
            spool.close()

    asyncio.run(run())


async def drip(sock: socket.socket, data: bytes) -> int:
    """Send byte by byte until the box has had enough; how many it took."""
    for count in range(len(data)):
        try:
            await asyncio.get_running_loop().sock_sendall(sock, data[count : count + 1])
        except ConnectionError:
            return count
        await asyncio.sleep(0.01)
    return len(data)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for minutes."""
    for name, seconds in {
        "_FRAME_S": 0.1,
        "_UPLOAD_S": 0.1,
        "_UPLOAD_LEAST_BYTES_PER_S": 1 << 20,
        "_CLOSE_S": 0.1,
    }.items():
        monkeypatch.setattr(visit, name, seconds)


def test_a_frame_that_never_becomes_whole_ends_the_connection(tmp_path: Path) -> None:
    async def play(sock: socket.socket, client: Connection) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, client.send(HELLO))
        await loop.sock_recv(sock, 1000)
        assert await drip(sock, client.send(m.Ping(1)).ljust(4) + b"\0\1\0\0" + bytes(5000)) < 5000

    visited(tmp_path, play)


def test_an_upload_that_crawls_ends_the_connection(tmp_path: Path) -> None:
    async def play(sock: socket.socket, client: Connection) -> None:
        code = bytes(100_000)
        store = m.Store(
            1, os.urandom(32), os.urandom(32), manifest.encode(Manifest()), len(code), hashlib.sha256(code).digest()
        )
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, client.send_many([HELLO, store]))
        sent = 0
        try:
            for at in range(3000):
                await loop.sock_sendall(sock, client.send(m.Chunk(1, at, b"x")))
                sent += 1
                await asyncio.sleep(0.005)
        except ConnectionError:
            pass
        assert 0 < sent < 3000

    visited(tmp_path, play)


def test_who_says_nothing_first_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "_HELLO_S", 0.05)

    async def play(sock: socket.socket, client: Connection) -> None:
        assert await asyncio.get_running_loop().sock_recv(sock, 10) == b""

    visited(tmp_path, play)


def test_who_takes_nothing_is_left_and_no_more_than_a_little_waits_for_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visit, "_WRITE_S", 0.2)

    async def play(sock: socket.socket, client: Connection) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop, count = asyncio.get_running_loop(), 0
        await loop.sock_sendall(sock, client.send(HELLO))
        # A policy for each of these; the answers are never taken.
        question = Connection(Role.CLIENT)
        question.send(HELLO)
        asked = question.send(m.GetPolicy())
        try:
            async with asyncio.timeout(10):
                while True:
                    await loop.sock_sendall(sock, asked * 16)
                    count += 16
        except (ConnectionError, TimeoutError):
            pass
        assert count < 100_000

    visited(tmp_path, play)
