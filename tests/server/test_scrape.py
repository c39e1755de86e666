"""Who is answered at the metrics' port: what asks for this machine by its address."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bento_tor.controller.endpoints import Endpoint
from bento_tor.server import scrape

ASKED = "GET /metrics HTTP/1.1\r\n{}\r\n"


def answer(endpoint: Endpoint, asked: str) -> bytes:
    async def ask() -> bytes:
        listener = scrape.listen(endpoint)
        place = listener.getsockname()
        server = scrape.Scrape(lambda: b"a 1\n", "text/plain")
        await server.open(listener)
        try:
            family = socket.AF_UNIX if endpoint.path else socket.AF_INET
            with socket.socket(family) as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, place)
                reader, writer = await asyncio.open_connection(sock=sock.dup())
                writer.write(asked.encode())
                said = await reader.read()
                writer.close()
                return said
        finally:
            server.close()

    return asyncio.run(asyncio.wait_for(ask(), 20))


@pytest.mark.parametrize(
    ("head", "served"),
    [
        ("", True),  # HTTP/1.0
        ("Host: 127.0.0.1:9100\r\n", True),
        ("Host: localhost:9100\r\n", True),
        ("host:LOCALHOST\r\n", True),
        ("Host: [::1]:9100\r\n", True),
        ("Host: rebound.example:9100\r\n", False),
        ("X: y\r\nHost: rebound.example\r\n", False),
        ("Host: 127.0.0.1\r\nHost: rebound.example\r\n", False),
        ("Host: 127.0.0.1.rebound.example\r\n", False),
        ("Host: [::1].rebound.example\r\n", False),
        ("Host: 192.0.2.80\r\n", False),
        ("Host:\r\n", False),
    ],
)
def test_a_name_that_was_led_here_is_not_answered(head: str, served: bool) -> None:
    said = answer(Endpoint("127.0.0.1", 0), ASKED.format(head))
    assert said.startswith(b"HTTP/1.1 200" if served else b"HTTP/1.1 421") and (b"a 1" in said) is served


def test_at_a_unix_socket_names_mean_nothing(short_path: Path) -> None:
    assert b"a 1" in answer(Endpoint.unix(short_path / "metrics"), ASKED.format("Host: box\r\n"))
