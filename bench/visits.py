"""One visit of a page, in each of the ways that are compared: what a user's programs do, nothing of what is recorded.

`direct` is a scripted browser, not a real one: the document, then the style sheets and pictures that it names, then
what the sheets name, six at a time for each host, connections kept, all on one circuit, through an exit. The others use
a box over its onion service, as the client library does it.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from lab import BOX, TIMEOUT_S, Lab
from sites import PORT, Site

from bento_tor.client import browsing, load
from bento_tor.client.browsing import Wish
from bento_tor.client.cover import Cover, Pace
from bento_tor.client.page import unpack
from bento_tor.client.transport import Stream, Transport
from bento_tor.errors import BentoError

KIB, MB = 1 << 10, 10**6
MOST_BYTES = 16 * MB
AT_ONCE = 6
_NAMED = re.compile(rb'(?:src|href)="([^"]+)"|url\(([^)]+)\)')
_BULK_BYTES = 4 * KIB


@dataclass(frozen=True)
class Got:
    """What came of a visit. `observed`: to which of the classes it belongs that an observer can tell by design."""

    outcome: str
    page_bytes: int
    seconds: float
    observed: str


@dataclass(frozen=True)
class Condition:
    """A way to visit. `padding`, `release_s`: of `browser`. `pace`: of a cover."""

    name: str
    padding: int = 0
    release_s: float = 0.0
    maybe_pace: Pace | None = None

    @property
    def bounded(self) -> bool:
        """Whether what an observer can tell is limited by design: sizes and times come in classes."""
        return self.maybe_pace is not None or bool(self.padding and self.release_s)

    def warm(self, at: Lab, site: Site, identity: str) -> None:
        """Build the circuits, before anything is recorded."""
        way = at.ways["exit" if self.name == "direct" else "onion"]
        if self.name == "direct":
            with at.stream(way, identity, PORT, site.host) as sock:
                sock.sendall(b"GET /warm HTTP/1.1\r\n\r\n")
                sock.recv(4096)
        else:
            at.stream(way, identity, BOX).close()

    def visit(self, at: Lab, site: Site, identity: str) -> Got:
        """Once. Raises BentoError or OSError where it did not go as it should."""
        if self.name == "direct":
            return visit_directly(at, site, identity)
        if self.maybe_pace is not None:
            return visit_covered(at, site, identity, self.maybe_pace)
        return visit_by_browser(at, site, identity, self)


def make_conditions(release_s: float, cover: Pace) -> dict[str, Condition]:
    """All that there are, by name."""
    listed = [
        Condition("direct"),
        Condition("browser"),
        Condition("padded-256k", 256 * KIB),
        Condition("grid-256k", 256 * KIB, release_s),
        Condition("grid-1m", MB, release_s),
        Condition("cover", maybe_pace=cover),
    ]
    return {condition.name: condition for condition in listed}


# --- as a browser does it --------------------------------------------------------------------------------------


def visit_directly(at: Lab, site: Site, identity: str) -> Got:
    """The document and its requisites, each by a stream of Tor's."""
    begun = time.monotonic()
    fetcher = _Fetcher(at, identity)
    try:
        with ThreadPoolExecutor(2 * AT_ONCE) as pool:
            status, document = fetcher.get(site.url)
            size, wanted, known = len(document), named_in(document), set[str]()
            while wanted := [url for url in dict.fromkeys(wanted) if url not in known]:
                known.update(wanted)
                bodies = [body for _, body in pool.map(fetcher.get, wanted)]
                size += sum(map(len, bodies))
                sheets = [body for url, body in zip(wanted, bodies, strict=True) if url.endswith(".css")]
                wanted = [url for sheet in sheets for url in named_in(sheet)]
    except (http.client.HTTPException, ConnectionError):
        if site.kind != "mute":
            raise
        status, size = 0, 0
    finally:
        fetcher.close()
    took = time.monotonic() - begun
    _check(site, size)
    return Got("page" if status == 200 else "error", size, took, f"site {site.number}")


def named_in(body: bytes) -> list[str]:
    """Addresses in a document or a style sheet."""
    return [(one or other).decode() for one, other in _NAMED.findall(body)]


class _Fetcher:
    """Connections to hosts, some at once for each, kept and used again."""

    def __init__(self, at: Lab, identity: str) -> None:
        self._at = at
        self._identity = identity
        self._changed = threading.Lock()
        self._idle: dict[str, deque[http.client.HTTPConnection]] = {}
        self._rooms: dict[str, threading.Semaphore] = {}
        self._all: list[http.client.HTTPConnection] = []

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        with self._changed:
            room = self._rooms.setdefault(host, threading.Semaphore(AT_ONCE))
            idle = self._idle.setdefault(host, deque())
        with room:
            connection = idle.pop() if idle else self._connect(host)
            connection.request("GET", parts.path, headers={"User-Agent": "Mozilla/5.0", "Accept": "*/*"})
            with connection.getresponse() as answer:
                got = answer.status, answer.read()
            idle.append(connection)
            return got

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _connect(self, host: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
        connection.sock = self._at.stream(self._at.ways["exit"], self._identity, PORT, host)
        with self._changed:
            self._all.append(connection)
        return connection


# --- by a box ----------------------------------------------------------------------------------------------------


def visit_by_browser(at: Lab, site: Site, identity: str, condition: Condition) -> Got:
    """The function `browser`, with all requisites."""
    begun = time.monotonic()
    counting = Counting()
    padding, release_s = condition.padding, condition.release_s
    wish = Wish(site.url, padding, release_s, assets=True)
    with at.box(at.ways["onion"], identity, wrap=counting.wrap) as box:
        session = box.run(browsing.function(wish), browsing.call(wish))
        message = browsing.collect(session)
        took = time.monotonic() - begun
        if session.maybe_shutdown is not None:
            box.shutdown(session.maybe_shutdown, last=True)
    outcome, size = _opened(site, message)
    observed = f"{counting.received} bytes"
    if condition.bounded:
        # The multiples that came, and the place on the grid: all that may be seen.
        multiples, rest = divmod(counting.received, padding)
        if rest:
            raise BentoError(f"{counting.received} bytes came, which is no multiple of {padding}")
        observed = f"{multiples} x {padding} at {int((counting.bulk_at - begun) / release_s)}"
    return Got(outcome, size, took, observed)


def visit_covered(at: Lab, site: Site, identity: str, pace: Pace) -> Got:
    """The same function, under cover."""
    begun = time.monotonic()
    wish = Wish(site.url, assets=True)
    inner = browsing.function(wish)
    with at.box(at.ways["onion"], identity) as box:
        session = box.run(pace.asking(load("cover"), inner), pace.call())
        with Cover(session, pace) as cover:
            cover.run(inner, browsing.call(wish))
            message, took = b"", 0.0
            for came in cover:
                message, took = came, time.monotonic() - begun
            ended = cover.wait()
        if session.maybe_shutdown is not None:
            box.shutdown(session.maybe_shutdown)
    if not ended.succeeded or not cover.complete:
        raise BentoError(f"the cover was over before the page: {ended}")
    outcome, size = _opened(site, message)
    return Got(outcome, size, took, "cover")


def _opened(site: Site, message: bytes) -> tuple[str, int]:
    """What became of the page, and how long it is. Raises BentoError where that is not so."""
    page = unpack(message, MOST_BYTES)
    if bool(page.error) != (site.kind == "mute"):
        raise BentoError(f"browser says: {page.error or page.status}")
    size = sum(len(part.data) for part in page.parts)
    _check(site, size)
    return ("page" if page.status == 200 and not page.error else "error"), size


def _check(site: Site, size: int) -> None:
    if size != site.size:
        raise BentoError(f"{size} of {site.size} bytes came")


class Counting:
    """Counts what comes from a box, and knows when the bulk of it began."""

    def __init__(self) -> None:
        self.received = 0
        self.bulk_at = 0.0

    def wrap(self, inner: Transport) -> Transport:
        """A transport whose streams are counted."""
        return _CountedTransport(inner, self)

    def add(self, count: int) -> None:
        """So many more."""
        self.received += count
        if not self.bulk_at and self.received > _BULK_BYTES:
            self.bulk_at = time.monotonic()


class _CountedTransport:
    def __init__(self, inner: Transport, counting: Counting) -> None:
        self.builds_circuits = inner.builds_circuits
        self._inner = inner
        self._counting = counting

    def open(self) -> Stream:
        return _CountedStream(self._inner.open(), self._counting)


class _CountedStream:
    def __init__(self, inner: Stream, counting: Counting) -> None:
        self.send, self.close = inner.send, inner.close
        self._inner = inner
        self._counting = counting

    def recv(self, max_bytes: int) -> bytes:
        data = self._inner.recv(max_bytes)
        self._counting.add(len(data))
        return data
