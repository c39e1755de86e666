"""The web site that Chromium is shown, on every address of the tests' internet. Run by tests/egress/world.py."""

from __future__ import annotations

import asyncio
import struct
import zlib

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def png(colour: tuple[int, int, int], size: int = 100) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * size) * size
    head = struct.pack("!IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def page(body: str) -> tuple[str, bytes]:
    head = "<!doctype html><html><head><title>t</title><style>body { margin: 0 }</style></head>"
    return "text/html; charset=utf-8", f"{head}<body>{body}</body></html>".encode()


# A red image, a blue box that only a script makes, out of what it fetched, and what the page can tell of its reader.
WHOLE = """<img src=/red.png><p id=told></p><script>
fetch('/colour').then(answer => answer.text()).then(colour => {
  const box = document.createElement('div');
  box.style = `width: 100px; height: 100px; background: ${colour}`;
  document.body.prepend(box);
  document.querySelector('#told').textContent = `the script ran ${navigator.userAgent} ${navigator.languages}
    ${Intl.DateTimeFormat().resolvedOptions().timeZone} ${innerWidth}x${innerHeight} ${navigator.webdriver}`;
});
</script>"""
# Two letters of each: Latin, Greek, Cyrillic, Chinese (simplified and traditional), Japanese, Korean, Arabic, Persian,
# Urdu, Hebrew, Hindi, Bengali, Tamil, Thai, Amharic, Georgian, Armenian; each alone in a square of 40 by 40. Then one
# without, and one that is green where an alif is narrower than a sin.
LETTERS = (
    "ab\u03bb\u03be\u0436\u0444\u8fd9\u4eec\u9019\u81fa\u3072\u30ab\ud55c\uae00\u0639\u0645\u0686\u067e"
    "\u0679\u06d2\u05e9\u05dd\u0928\u0939\u0995\u09ac\u0bb5\u0b95\u0e2a\u0e27\u1230\u120b\u10d0\u10ef\u0561\u0573"
)
ALL_LETTERS = "".join(f"<b>{letter}</b>" for letter in LETTERS) + (
    "<b></b><b id=last></b>"
    "<script>const pen = document.createElement('canvas').getContext('2d'); pen.font = '24px Arial';"
    "const [alif, sin] = ['\u0627', '\u0633'].map(letter => pen.measureText(letter).width);"
    "last.style.background = alif < sin ? 'rgb(0, 128, 0)' : 'red'</script>"
    "<style>b { float: left; width: 40px; height: 40px; font: 24px/40px Arial; overflow: hidden }</style>"
)
GREEN_PAGE = "<div style='width: 100px; height: 100px; background: rgb(0, 128, 0)'></div>"
# Past the proxy, to the sandbox itself, to the machine: none may get anywhere.
OTHER_WAYS = """
for (const url of ['http://127.0.0.1:1080/', 'http://localhost/', 'http://10.99.0.1/', 'file:///etc/ssl']) {
  fetch(url).then(() => { document.title += url }).catch(() => 0);
}
const peer = new RTCPeerConnection({iceServers: [{urls: 'stun:93.184.216.35:3478'}]});
peer.createDataChannel('x');
peer.onicecandidate = event => { if (event.candidate) document.title += event.candidate.candidate };
peer.createOffer().then(offer => peer.setLocalDescription(offer));
"""
PAGES = {
    "/whole": page(WHOLE),
    "/green": page(GREEN_PAGE),
    "/letters": page(ALL_LETTERS),
    "/red.png": ("image/png", png(RED)),
    "/colour": ("text/plain", b"rgb(0, 0, 255)"),
    "/script-leads": page("<script>location = '/green'</script>"),
    "/pushes": page(
        "<script>alert(1); confirm(2); prompt(3); onbeforeunload = () => 'stay';"
        f"open('/whole'); open('/whole', 'x', 'popup')</script><a id=a download href=/file></a>{GREEN_PAGE}"
        "<script>a.click()</script>"
    ),
    "/spins": page(f"{GREEN_PAGE}<script>setTimeout(() => {{ for (;;); }}, 300)</script>"),
    "/frames": page("".join(f"<iframe src=http://{i}.frames.example.com/whole></iframe>" for i in range(12))),
    "/long": page("<div style='height: 99999px'></div>"),
    "/slow-image": page(f"{GREEN_PAGE}<img src=/slow>"),
    "/other-ways": page(f"<script>{OTHER_WAYS}</script>{GREEN_PAGE}"),
}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One answer for each connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await answer(head.split()[1].decode().partition("?")[0], writer)
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def answer(path: str, writer: asyncio.StreamWriter) -> None:
    """What is at this path."""
    if path == "/redirect":
        return send(writer, "302 Found", "text/plain", b"", "Location: /script-leads")
    if path == "/circle":
        return send(writer, "302 Found", "text/plain", b"", "Location: /circle")
    if path == "/file":
        return send(writer, "200 OK", "application/octet-stream", bytes(99), "Content-Disposition: attachment")
    if path == "/slow":
        await asyncio.sleep(60)
    if path == "/hello-then-nothing":
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9999\r\n\r\n" + GREEN_PAGE.encode()
        )
        await asyncio.sleep(60)
    if path == "/endless":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + GREEN_PAGE.encode())
        while True:
            writer.write(b"<br>x")
            await writer.drain()
            await asyncio.sleep(0.2)
    kind, body = PAGES.get(path, page(f"<h1>there is no such page</h1>{GREEN_PAGE}"))
    return send(writer, "200 OK" if path in PAGES else "404 Not Found", kind, body)


def send(writer: asyncio.StreamWriter, status: str, kind: str, body: bytes, *more: str) -> None:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
