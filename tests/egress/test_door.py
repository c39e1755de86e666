"""A door: so many at once, the rest wait; what fails frees its place; nothing is left."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bento_tor.egress.door import Door, exactly


async def connected(path: Path) -> socket.socket:
    conn = socket.socket(socket.AF_UNIX)
    conn.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(conn, str(path))
    except OSError:
        conn.close()
        raise
    return conn


async def told(conn: socket.socket, timeout_s: float = 10) -> bytes:
    async with asyncio.timeout(timeout_s):
        return await asyncio.get_running_loop().sock_recv(conn, 100)


def test_so_many_at_once_and_a_failure_frees_its_place(short_path: Path) -> None:
    async def serve(conn: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with conn:
            await loop.sock_sendall(conn, b"hello")
            if await exactly(conn, 4) == b"fail":
                raise ValueError("broken")

    async def play() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(short_path / "door"))
        listener.listen()
        door = Door(listener, 2, serve)
        door.open()
        first, second, third = [await connected(short_path / "door") for _ in range(3)]
        assert (await told(first), await told(second)) == (b"hello", b"hello")
        assert door.busy == 2
        with pytest.raises(TimeoutError):
            await told(third, 0.2)
        first.send(b"fail")
        assert await told(third) == b"hello"
        second.send(b"ha")
        second.close()  # half of what was to come
        fourth = await connected(short_path / "door")
        assert await told(fourth) == b"hello"
        assert door.begin(asyncio.sleep(60)) and door.busy == 3  # type: ignore[arg-type]
        await door.close()
        assert (await told(third), await told(fourth), door.busy) == (b"", b"", 0)
        with pytest.raises(OSError):
            await connected(short_path / "door")
        for conn in (first, third, fourth):
            conn.close()

    asyncio.run(play())


def test_exactly_says_how_much_came() -> None:
    async def play() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"1234567")
            assert await exactly(ours, 4) == b"1234"
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionAbortedError, match="3 of 4"):
                await exactly(ours, 4)

    asyncio.run(play())
