"""Fetch a web page. The box sees the page, its address, and when: only who watches your own link sees nothing of them.

browser(url, padding, render, timeout, release, assets, limit) sends one message, described at `pack`. Whatever comes
of the page (redirects, cookies between them, a bad certificate, an error of HTTP, too much, too slow) is told in it.
With `padding` all that the box sends is a multiple of so many bytes, with `release` it leaves at a multiple of so many
seconds: an error has the shape of a page. `timeout` is for all of it, in seconds; `limit` bytes are the most that a
page, with its pictures and style sheets where `assets` are wanted, may have.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["requests"]
# [tool.bento]
# entry = "browser"
# image = "python"
# egress = "exit"
# ///

import json
import re
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin

MIB = 1 << 20
REDIRECTS, ASSETS, AT_ONCE = 20, 100, 6
# As Tor Browser says it: a site should learn no more of a box than of anybody.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate",
}
CSS_URL = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", re.IGNORECASE)


def browser(url, padding=0, render="", timeout=30, release=0, assets=False, limit=8 * MIB):
    # Said first: from here on it holds, also if this code is killed for memory.
    api.pad_to(padding, release)
    visit = Visit(url, time.monotonic() + timeout, limit)
    # In a thread that may be left behind: a server that sends a byte each second keeps no time limit of a socket's.
    worker = threading.Thread(target=visit.run, args=(WAYS.get(render, unknown), assets), daemon=True)
    worker.start()
    worker.join(timeout)
    api.send(visit.pack(f"it did not arrive in {timeout:g} seconds"))


class Failed(Exception):
    """What became of a page, in a sentence for its reader."""


class Visit:
    """One page on its way. `parts`: what there is of it, the page itself first."""

    def __init__(self, url, deadline, limit):
        self.url = url
        self.deadline = deadline
        self.status = None
        self.certificate = None
        self.error = None
        self.done = False
        self.left_out = 0
        self.parts = []
        self._room = limit
        self._limit = limit
        self._lock = threading.Lock()

    def run(self, way, assets):
        try:
            way(self, assets)
        except Exception as error:
            self.error = str(error) if isinstance(error, Failed) else sentence(error)
        self.done = True

    def left_s(self):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Failed("the time is over")
        return left

    def add(self, url, kind, data):
        """Keep a part, while there is room for it."""
        with self._lock:
            if len(data) > self._room:
                raise Failed(f"it is larger than {self._limit} bytes")
            self._room -= len(data)
            self.parts.append((url, kind, data))

    def room(self):
        return self._room

    def pack(self, late):
        """The message: compressed by zlib, a line of JSON (url, status, certificate, error, left_out, and parts, each
        with its url, type and length), then the parts' bytes."""
        with self._lock:
            parts = list(self.parts)
            error = self.error if self.done or parts else late
        head = {"url": self.url, "status": self.status, "certificate": self.certificate, "error": error}
        head["left_out"] = self.left_out
        head["parts"] = [{"url": url, "type": kind, "length": len(data)} for url, kind, data in parts]
        packer = zlib.compressobj(9)
        pieces = [json.dumps(head).encode() + b"\n", *(data for _, _, data in parts)]
        return b"".join([*map(packer.compress, pieces), packer.flush()])


# --- without an engine: the document, and what it needs to be seen -------------------------------------------------


def plain(visit, assets):
    import requests

    with requests.Session() as session:
        session.trust_env = False
        # Else it reads a redirect's whole body, decoded, however long that is.
        session.resolve_redirects = lambda *args, **more: iter(())
        session.headers.update(HEADERS)
        response = follow(session, visit)
        kind = response.headers.get("Content-Type", "")
        data = body(response, visit.room())
        visit.add(visit.url, kind, data)
        if assets and "html" in kind.lower():
            fetch_assets(session, visit, data.decode(response.encoding or "utf-8", "replace"))


def follow(session, visit):
    """The response at the end of all redirects; none of their bodies is read."""
    for _ in range(REDIRECTS + 1):
        response = session.get(visit.url, stream=True, allow_redirects=False, timeout=visit.left_s())
        visit.status = response.status_code
        visit.certificate = certificate(response)
        target = session.get_redirect_target(response)
        if target is None:
            return response
        response.close()
        visit.url = urljoin(visit.url, target)
    raise Failed(f"it redirects more than {REDIRECTS} times")


def certificate(response):
    """What vouched for the site: nothing without TLS. One that is not good raises before."""
    sock = getattr(response.raw.connection, "sock", None)
    if sock is None:  # a server that closes: the connection has handed its socket on
        sock = getattr(getattr(getattr(response.raw, "_original_response", None), "fp", None), "raw", None)
        sock = getattr(sock, "_sock", None)
    if not hasattr(sock, "getpeercert"):
        return None
    found = sock.getpeercert() or {}
    names = {key: dict(pair[0] for pair in found.get(key, ())) for key in ("subject", "issuer")}
    issuer = names["issuer"].get("organizationName") or names["issuer"].get("commonName", "")
    return {"valid": True, "subject": names["subject"].get("commonName", ""), "issuer": issuer}


def body(response, most):
    """All of a response, decoded no further than `most`: a small gzip may hold gigabytes."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    decoders = {"gzip": 47, "x-gzip": 47, "deflate": 47, "identity": None, "": None}
    if coding not in decoders:
        raise Failed(f"it is encoded as {coding[:40]}, which was not asked for")
    decoder = zlib.decompressobj(decoders[coding]) if decoders[coding] else None
    data = bytearray()
    for piece in response.raw.stream(16 * 1024, decode_content=False):
        data += decoder.decompress(piece, most - len(data) + 1) if decoder else piece
        if len(data) > most:
            raise Failed(f"it is larger than {most} bytes")
    return bytes(data)


class Requisites(HTMLParser):
    """What a page shows besides its text: the addresses of pictures and style sheets."""

    def __init__(self, text):
        super().__init__()
        self.base, self.found = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        if tag == "base" and not self.base:
            self.base = has.get("href") or ""
        elif tag == "img":
            self.found.append(has.get("src") or (has.get("srcset") or "").split(" ")[0])
        elif tag == "link" and "stylesheet" in (has.get("rel") or "").lower():
            self.found.append(has.get("href"))
        self.found += CSS_URL.findall(has.get("style") or "")

    def handle_data(self, data):
        if self.lasttag == "style":
            self.found += CSS_URL.findall(data)


def fetch_assets(session, visit, text):
    page = Requisites(text)
    known = set()
    wanted = new_addresses(urljoin(visit.url, page.base), page.found, known)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while wanted:
            sheets = pool.map(lambda url: fetch_asset(session, visit, url), wanted)
            # What style sheets name in their turn, pictures or more sheets.
            wanted = [url for base, names in filter(None, sheets) for url in new_addresses(base, names, known)]


def new_addresses(base, names, known):
    found = dict.fromkeys(urldefrag(urljoin(base, name.strip()))[0] for name in names if name)
    new = [url for url in found if url.startswith(("http://", "https://")) and url not in known]
    new = new[: ASSETS - len(known)]
    known.update(new)
    return new


def fetch_asset(session, visit, url):
    """Keep it if it comes and fits; gives what it names if it is a style sheet."""
    try:
        with session.get(url, stream=True, timeout=visit.left_s(), headers={"Referer": visit.url}) as response:
            kind, data = response.headers.get("Content-Type", ""), body(response, visit.room())
            if response.status_code != 200:
                return None
            visit.add(url, kind, data)
            return (url, CSS_URL.findall(data.decode("utf-8", "replace"))) if "css" in kind else None
    except Exception:
        visit.left_out += 1
        return None


def sentence(error):
    """The innermost reason of an error, without the names of classes and addresses of objects."""
    import ssl

    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = getattr(error, "reason", None) or error.__cause__ or error.__context__
        error = error if isinstance(error, BaseException) else None
    for found in reversed(seen):
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is not good: {found.verify_message}"
        if isinstance(found, TimeoutError):
            return "it does not answer"
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    return str(seen[0])[:300] or type(seen[0]).__name__


# --- the ways to get a page: each is told the visit, and whether assets are wanted ---------------------------------


def unknown(visit, assets):
    raise Failed("this function does not know that way to render")


WAYS = {"": plain}
