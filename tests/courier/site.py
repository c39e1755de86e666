"""A web site with one page, which comes when it is let. Run by tests/egress/world.py; what it says to the test, and the
test to it, are files beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path

HERE = Path(__file__).parent
REQUESTS, LET, PAGE = HERE / "requests", HERE / "let", HERE / "page"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One answer for each connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        with REQUESTS.open("ab") as file:
            file.write(head.splitlines()[0] + b"\n")
        while not LET.exists():
            await asyncio.sleep(0.05)
        body = PAGE.read_bytes()
        kind = b"Content-Type: text/html; charset=latin-1\r\nConnection: close\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (kind, len(body)) + body)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
