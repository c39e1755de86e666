"""The web of a fingerprinting bench: pages of different sizes and structures, made from a seed, and the server of them.

Run as `sites.py COUNT SEED` in a network namespace of its own; it answers for every address. A page is a document, the
style sheets that it names, and pictures that it or the sheets name. Each part has a time that its server thinks, of
which a third is left to chance at each visit. Where there are twenty pages or more the last three are a missing page, a
server that hangs up, and a slow one. Text compresses as text does; pictures do not.
"""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

# Of nobody here: in a namespace with no way out. (A box refuses documentation addresses, as it should.)
ADDRESSES = "93.184.216.0/24"
PORT = 80
JITTER = 0.35
MOST_BYTES = 850_000
_SLOW_S = 2.2
_ODD = ("missing", "mute", "slow")
_WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "on", "with", "as", "was", "at", "by", "an", "be")


@dataclass(frozen=True)
class Part:
    """One answer of a server's: the path within its site, bytes, and seconds to think."""

    name: str
    kind: str
    size: int
    think_s: float


@dataclass(frozen=True)
class Site:
    """One page. `kind`: page, or one of the odd ones. Pictures of `from_sheets` are named by style sheets."""

    number: int
    name: str
    kind: str
    host: str
    parts_host: str
    document: Part
    sheets: tuple[Part, ...]
    pictures: tuple[Part, ...]
    from_sheets: int

    @property
    def url(self) -> str:
        return f"http://{self.host}/{self.name}/"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The document first."""
        return (self.document, *self.sheets, *self.pictures)

    @property
    def size(self) -> int:
        """Bytes of all parts; of what does not answer there are none."""
        return 0 if self.kind == "mute" else sum(part.size for part in self.parts)


def make_sites(count: int, seed: int) -> tuple[Site, ...]:
    """The same ones for the same numbers."""
    odd = _ODD if count >= 20 else ()
    return tuple(
        _site(number, odd[number - count + len(odd)] if number >= count - len(odd) else "page", seed)
        for number in range(count)
    )


def _site(number: int, kind: str, seed: int) -> Site:
    chance = random.Random(seed * 1000 + number)
    name = "".join(chance.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(chance.randint(3, 24)))
    last = 10 + number
    host, other = f"93.184.216.{last}", f"93.184.216.{last + 100}"
    plain = kind in ("missing", "mute")
    document = Part("", "text/html", _size(chance, 3000, 120_000), _SLOW_S if kind == "slow" else _think(chance))
    sheets = [
        Part(f"{at}.css", "text/css", _size(chance, 1000, 40_000), _think(chance))
        for at in range(0 if plain else chance.randint(0, 4))
    ]
    room = MOST_BYTES - document.size - sum(sheet.size for sheet in sheets)
    pictures: list[Part] = []
    for at in range(0 if plain else chance.randint(0, 24)):
        picture = Part(f"{at}.png", "image/png", _size(chance, 800, 120_000), _think(chance))
        room -= picture.size
        if room < 0:
            break
        pictures.append(picture)
    from_sheets = len(pictures) // 3 if sheets else 0
    parts_host = other if chance.random() < 0.5 else host
    return Site(number, name, kind, host, parts_host, document, tuple(sheets), tuple(pictures), from_sheets)


def _size(chance: random.Random, least: int, most: int) -> int:
    """Small ones are more frequent."""
    return int(least * (most / least) ** chance.random())


def _think(chance: random.Random) -> float:
    return chance.uniform(0.02, 0.3)


# --- what is in them ---------------------------------------------------------------------------------------------


@cache
def content(site: Site, part: Part) -> bytes:
    """The bytes of one part, exactly as many as it says."""
    base = f"http://{site.parts_host}/{site.name}/"
    own = site.pictures[: len(site.pictures) - site.from_sheets]
    if part.kind == "text/html":
        links = "".join(f'<link rel="stylesheet" href="{base}{sheet.name}">\n' for sheet in site.sheets)
        shown = "".join(f'<img src="{base}{picture.name}">\n' for picture in own)
        return _filled(site, part, f"<!doctype html><title>{site.name}</title>\n{links}{shown}<p>", "</p>\n")
    if part.kind == "text/css":
        named = site.pictures[len(own) :] if part == site.sheets[0] else ()
        rules = "".join(f".p{at} {{ background: url({base}{picture.name}) }}\n" for at, picture in enumerate(named))
        return _filled(site, part, f"{rules}/* ", " */\n")
    return random.Random(f"{site.name} {part.name}").randbytes(part.size)


def _filled(site: Site, part: Part, begin: str, end: str) -> bytes:
    chance = random.Random(f"{site.name} {part.name}")
    words, length = [begin], len(begin)
    while length < part.size:
        words.append(f"{chance.choice(_WORDS)}{chance.randint(0, 99)} ")
        length += len(words[-1])
    return ("".join(words)[: part.size - len(end)] + end).encode()


# --- the server --------------------------------------------------------------------------------------------------


class Server:
    """HTTP/1.1, connections kept."""

    def __init__(self, sites: tuple[Site, ...]) -> None:
        self._sites = {site.name: site for site in sites}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                name, _, rest = head.split()[1].decode().strip("/").partition("/")
                if not await self._answer(writer, name, rest):
                    break
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, name: str, rest: str) -> bool:
        site = self._sites.get(name)
        if site is None:
            _say(writer, 404, "text/plain", b"no such site")  # a warm-up
            return True
        if site.kind == "mute":
            await _think_as(site.document.think_s)
            return False
        status = 404 if site.kind == "missing" else 200
        part = next(part for part in site.parts if part.name == rest)
        await _think_as(part.think_s)
        _say(writer, status, part.kind, content(site, part))
        await writer.drain()
        return True


async def _think_as(seconds: float) -> None:
    await asyncio.sleep(seconds * random.uniform(1 - JITTER, 1 + JITTER))


def _say(writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def main() -> None:
    sites = make_sites(int(sys.argv[1]), int(sys.argv[2]))
    for site in sites:  # not at the first visit, which would be slower than the others
        for part in site.parts:
            content(site, part)
    await asyncio.start_server(Server(sites).serve, "0.0.0.0", PORT, backlog=1024)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
