"""A web site with all that a page may do to a browser. Serves one connection after another, for as long as it lives.

Used on this machine's loopback, and as the far end of the world of tests/egress/world.py.
"""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from collections.abc import AsyncIterator

Answer = tuple[str, dict[str, str], bytes | AsyncIterator[bytes]]
HTML = {"Content-Type": "text/html; charset=utf-8"}
CYRILLIC = "\u041f\u0440\u0438\u0432\u0435\u0442"


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A real picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * width) * height
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PAGE = b"""<!doctype html><html><head><title>A page</title><link rel=stylesheet href=/style.css>
<style>h1 { background: url('/bg.png') }</style></head>
<body onload="alert(1)"><h1>Hello</h1><p>some text</p><img src=/red.png alt=red>
<img srcset="/big.png 2x, /small.png 1x"><img src=/nowhere.png><script src=/app.js></script>
<a href=/other>a link</a></body></html>"""
SCRIPTED = b"""<!doctype html><html><head><link rel=stylesheet href=/style.css></head><body><p id=told>nothing ran</p>
<script>told.textContent = "the script ran"; const i = new Image(); i.src = "/red.png"; document.body.append(i)</script>
</body></html>"""
BOMB = gzip.compress(bytes(64 << 20))


async def drip(begin: bytes = b"<p>") -> AsyncIterator[bytes]:
    yield begin
    while True:
        await asyncio.sleep(0.1)
        yield b"."


async def flood() -> AsyncIterator[bytes]:
    while True:
        yield b"<p>more</p>" * 5000


async def silence() -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


def answer(path: str, headers: dict[str, str]) -> Answer:
    """What is at this path."""
    word, _, number = path.strip("/").partition("/")
    match word:
        case "":
            return "200 OK", HTML, PAGE
        case "bytes":  # a page of so many bytes, which compress badly
            seed, text = 1, bytearray(b"<!doctype html>")
            while len(text) < int(number):
                seed = seed * 1103515245 + 12345 & 0x7FFFFFFF
                text += b"%08x " % seed
            return "200 OK", HTML, bytes(text[: int(number)])
        case "scripted":
            return "200 OK", HTML, SCRIPTED
        case "style.css":
            return "200 OK", {"Content-Type": "text/css"}, b"p { color: green; background: url(deep.png) }"
        case "red.png" | "bg.png" | "deep.png" | "big.png":
            return "200 OK", {"Content-Type": "image/png"}, png()
        case "chain" if int(number):
            return "302 Found", {"Location": f"/chain/{int(number) - 1}"}, b""
        case "chain":
            return "200 OK", HTML, b"the end of the chain"
        case "loop":
            return "301 Moved", {"Location": "/loop"}, b""
        case "to-a-file":
            return "302 Found", {"Location": "file:///etc/passwd"}, b""
        case "bomb-on-the-way":
            return "302 Found", {"Location": "/chain/0", "Content-Encoding": "gzip"}, flood()
        case "cookie":
            return "302 Found", {"Location": "/jar", "Set-Cookie": "taste=sweet; Path=/"}, b""
        case "jar":
            return "200 OK", HTML, headers.get("cookie", "no cookie").encode()
        case "slow":
            return "200 OK", HTML, drip()
        case "slow-picture":
            return "200 OK", HTML, b"<p>the text</p><img src=/slow><img src=/red.png>"
        case "endless":
            return "200 OK", HTML, flood()
        case "silent":
            return "", {}, silence()
        case "dripping-header":
            return "", {}, drip(b"HTTP/1.1 200 OK\r\nX: ")
        case "bomb":
            return "200 OK", HTML | {"Content-Encoding": "gzip"}, BOMB
        case "zipped":
            return "200 OK", HTML | {"Content-Encoding": "gzip"}, gzip.compress(PAGE)
        case "brotli":
            return "200 OK", HTML | {"Content-Encoding": "br"}, b"\x0b\x02\x80abc\x03"
        case "cyrillic":
            return "200 OK", {"Content-Type": "text/html; charset=windows-1251"}, CYRILLIC.encode("windows-1251")
        case "cut":
            return "200 OK", HTML | {"Content-Length": "5000"}, b"only this"
        case "error":
            return "503 Unavailable", HTML, b"<h1>come back later</h1>"
        case "rubbish":
            return "", {}, b"\xff\xfe no http \x00" * 100
        case _:
            return "404 Not Found", HTML, b"<h1>there is no such page</h1>"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status, more, data = answer(lines[0].split()[1], headers)
        if isinstance(data, bytes):
            more = {"Content-Length": str(len(data))} | more
        if status:
            head = [f"HTTP/1.1 {status}", "Connection: close", *(f"{name}: {value}" for name, value in more.items())]
            writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
        if isinstance(data, bytes):
            writer.write(data)
        else:
            async for piece in data:
                writer.write(piece)
                await writer.drain()
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
