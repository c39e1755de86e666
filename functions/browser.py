"""Fetch a web page. The box sees the page, its address, and when: only who watches your own link sees nothing of them.

browser(url, padding, render, timeout, release, assets, limit) sends one message, described at `pack`. Whatever comes
of the page (redirects, cookies between them, a bad certificate, an error of HTTP, too much, too slow) is told in it.
With `padding` all that the box sends is a multiple of so many bytes, with `release` it leaves at a multiple of so many
seconds: an error has the shape of a page. `timeout` is for all of it, in seconds; `limit` bytes are the most that a
page, with its pictures and style sheets where `assets` are wanted, may have. With `render` it is what Chromium shows
once the page's scripts have run, or when the time is nearly over, which needs the image `browser`: png, pdf, mhtml (one
file), or html (the document as it is then, and its assets).
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["requests"]
# [tool.bento]
# entry = "browser"
# image = "python"
# egress = "exit"
# ///

import base64
import contextlib
import email
import fcntl
import functools
import json
import os
import re
import select
import signal
import subprocess
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


# --- with an engine: what it looks like once its scripts have run --------------------------------------------------

CHROMIUM = "/usr/lib/chromium/chromium-headless-shell"
TYPES = {"png": "image/png", "pdf": "application/pdf", "mhtml": "multipart/related", "html": "text/html"}
# The same for everybody: a page learns that a box has come, and not which, nor for whom.
WIDTH, HEIGHT, MAX_HEIGHT = 1280, 800, 10_000
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36"
# The part of the time that is for the picture; the rest is for the page.
PICTURE = 0.25
# When nothing has come for so long, a page has settled; streams, which never end, do not count.
MOMENT_S, STREAMS = 0.5, ("EventSource", "WebSocket", "Media", "Ping")
TWO_FRAMES = {"expression": "new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"}
TWO_FRAMES["awaitPromise"] = True
# Pages go out by the sandbox's forwarder. Chromium's own calls home have a port where nobody listens.
WAY_OUT, NOWHERE = "socks5://127.0.0.1:1080", "socks5://127.0.0.1:9"
ENVIRONMENT = {"HOME": "/data", "TMPDIR": "/data", "TZ": "UTC", "LANG": "C.UTF-8"}
ENVIRONMENT["FONTCONFIG_FILE"] = "/packages/fonts.conf"
FLAGS = [
    "--headless", "--remote-debugging-pipe", "--user-data-dir=/data/chromium", "--disk-cache-size=16777216",
    # The sandbox around it is the box's: its own would need user namespaces, which no function gets.
    "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad",
    # What it would do of its own accord.
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-first-run", "--no-pings", "--dns-prefetch-disable",
    "--disable-features=AsyncDns,DnsOverHttps,OptimizationHints,Translate,MediaRouter,IsolateOrigins,site-per-process",
    # One process for a page and its frames: no frame finds anything of another's here, and memory is short.
    "--disable-site-isolation-trials", "--renderer-process-limit=1",
    # Ways past the proxy. (There is no route either.)
    "--disable-quic", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    f"--proxy-server={NOWHERE}", "--proxy-bypass-list=<-loopback>",
    "--block-new-web-contents", "--mute-audio", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-US",
]  # fmt: skip


def rendered(render, visit, _assets):
    with Chromium(visit) as chromium:
        page = Page(chromium, visit)
        page.load(visit.deadline - visit.left_s() * PICTURE)
        document = page.picture(render)
    if render == "html":
        take_apart(visit, document)
    else:
        visit.add(visit.url, TYPES[render], document)


def take_apart(visit, saved):
    """The parts of a page that was saved as one file. Style sheets of its own have no address there, but a number."""
    parts = [part for part in email.message_from_bytes(saved).walk() if not part.is_multipart()]
    visit.add(visit.url, "text/html; charset=utf-8", own_addresses(parts[0].get_payload(decode=True)))
    for part in parts[1 : ASSETS + 1]:
        try:
            url = own_addresses(part["Content-Location"].encode()).decode()
            visit.add(url, part.get_content_type(), part.get_payload(decode=True))
        except Failed:
            visit.left_out += 1
    visit.left_out += max(0, len(parts) - ASSETS - 1)


def own_addresses(data):
    return re.sub(rb"\bcid:([\w-]+)@mhtml\.blink", rb"http://cid.invalid/\1", data)


class Chromium:
    """The engine, and its DevTools: JSON texts that end in a zero byte, over two pipes."""

    def __init__(self, visit):
        self._visit, self._calls, self._pending = visit, 0, bytearray()
        self.on_event = None

    def __enter__(self):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # It wants them to be 3 and 4, which are taken here: through numbers that are free.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (theirs_in, theirs_out)]
        self._process = None
        try:
            self._process = subprocess.Popen(
                [CHROMIUM, *FLAGS], env=ENVIRONMENT, pass_fds=(3, 4), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(ends, (3, 4), strict=True)],
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as why:
            raise Failed("there is no Chromium here: it needs a box with the image 'browser'") from why
        finally:
            for fd in (*ends, theirs_in, theirs_out):
                os.close(fd)
        return self

    def __exit__(self, *_):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method, session=None, **parameters):
        """Ask for something; gives the number that the answer will have."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        return self._calls

    def call(self, method, session=None, deadline=None, **parameters):
        """Ask, and wait for the answer; None if the deadline comes first."""
        number = self.send(method, session, **parameters)
        while (message := self.receive(deadline or self._visit.deadline)) is not None:
            if message.get("id") == number:
                if "error" in message:
                    raise Failed(f"Chromium cannot do it: {message['error'].get('message')}")
                return message["result"]
        if deadline is None:
            raise Failed("the time is over")
        return None

    def receive(self, deadline):
        """The next message, or None if the deadline comes first. Events go to `on_event` too."""
        while (end := self._pending.find(b"\0")) < 0:
            if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(self._in, MIB)
            self._pending += data
            if not data:
                raise Failed("Chromium has ended: perhaps it needs more than this box gives")
            if len(self._pending) > 2 * self._visit.room() + MIB:  # as base64, and what is around it
                raise Failed(f"it is larger than {self._visit.room()} bytes")
        message = json.loads(self._pending[:end])
        del self._pending[: end + 1]
        if self.on_event and "method" in message:
            self.on_event(message["method"], message["params"])
        return message


class Page:
    """A page in a context of its own: no cookie or cache of anybody's, no other page, no download."""

    def __init__(self, chromium, visit):
        self._chromium, self._visit = chromium, visit
        version = chromium.call("Browser.getVersion")["product"].partition("/")[2].partition(".")[0]
        proxy = {"proxyServer": WAY_OUT, "proxyBypassList": "<-loopback>"}
        context = chromium.call("Target.createBrowserContext", **proxy)["browserContextId"]
        target = chromium.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        chromium.call("Browser.setDownloadBehavior", behavior="deny", browserContextId=context)
        self._frame = self._ask("Page.getFrameTree")["frameTree"]["frame"]["id"]
        # By loader, what the server answered and what went wrong; requests that are on their way, and that came to
        # nothing; the document that is shown.
        self._answers, self._failures, self._coming, self._lost = {}, {}, set(), set()
        self._loader, self._loaded, self._moved = None, False, time.monotonic()
        chromium.on_event = self._note
        for domain in ("Page", "Network"):
            self._ask(f"{domain}.enable")
        brands = [{"brand": name, "version": version} for name in ("Chromium", "Not.A/Brand")]
        hints = {"platform": "Linux", "platformVersion": "", "architecture": "x86", "model": "", "mobile": False}
        agent = {"userAgent": AGENT.format(version), "acceptLanguage": "en-US,en", "platform": "Linux x86_64"}
        self._ask("Emulation.setUserAgentOverride", **agent, userAgentMetadata=hints | {"brands": brands})
        self._ask("Emulation.setTimezoneOverride", timezoneId="UTC")
        self._resize(HEIGHT)

    def _resize(self, height):
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)

    def load(self, deadline):
        """Wait until nothing more comes, or until the deadline. Raises Failed where there is no page by then."""
        if not self._visit.url.lower().startswith(("http://", "https://")):
            raise Failed("only pages of http and https are rendered")
        began = self._chromium.call("Page.navigate", self._session, deadline, url=self._visit.url)
        if began is None:
            raise Failed("it does not answer")
        if reason := began.get("errorText"):
            raise Failed(failure(reason))
        settled, drawn = self._settle(deadline), None
        while settled and drawn is None and time.monotonic() < deadline:
            # On a busy machine what has come may not be seen yet.
            with contextlib.suppress(Failed):  # it has gone on to another page meanwhile
                drawn = self._chromium.call("Runtime.evaluate", self._session, deadline, **TWO_FRAMES)
            settled = self._settle(deadline)
        if not settled:
            self._chromium.send("Page.stopLoading", self._session)
            self._lost |= self._coming or {""}
        if drawn is None:
            # A script that runs for ever must not keep us from the picture.
            self._chromium.send("Runtime.terminateExecution", self._session)
        self._visit.left_out = len(self._lost)
        if self._loader in self._failures:
            raise Failed(failure(self._failures[self._loader]))

    def _settle(self, deadline):
        """Whether, before the deadline, all has come, and scripts have asked for no more for a moment."""
        while True:
            settled = self._loaded and not self._coming
            if self._chromium.receive(min(deadline, self._moved + MOMENT_S) if settled else deadline) is None:
                return settled

    def picture(self, render):
        """What it looks like now."""
        if render in ("mhtml", "html"):
            return self._ask("Page.captureSnapshot", format="mhtml")["data"].encode()
        if render == "pdf":
            return base64.b64decode(self._ask("Page.printToPDF", printBackground=True)["data"])
        height = int(self._ask("Page.getLayoutMetrics")["cssContentSize"]["height"])
        if height > HEIGHT:
            # A window as high as the page, and no picture beyond the window: frames there would not be drawn.
            self._resize(min(height, MAX_HEIGHT))
            self._settle(self._visit.deadline - self._visit.left_s() / 2)
        taken = self._ask("Page.captureScreenshot", format="png")
        return base64.b64decode(taken["data"])

    def _ask(self, method, **parameters):
        return self._chromium.call(method, self._session, **parameters)

    def _note(self, name, told):
        if name.startswith("Network."):
            self._moved = time.monotonic()
        if name == "Network.requestWillBeSent" and told["type"] not in STREAMS:
            self._coming.add(told["requestId"])
        elif name == "Network.responseReceived" and told.get("frameId") == self._frame:
            if told["type"] == "Document":
                self._answers[told["loaderId"]] = told["response"]
        elif name == "Network.loadingFinished":
            self._coming.discard(told["requestId"])
        elif name == "Network.loadingFailed":
            if told["requestId"] in self._coming:
                self._coming.remove(told["requestId"])
                self._lost.add(told["requestId"])
            if told["type"] == "Document":
                self._failures.setdefault(told["requestId"], told["errorText"])
        elif name == "Page.frameNavigated" and told["frame"]["id"] == self._frame:
            self._shows(told["frame"])
        elif name == "Page.loadEventFired":
            self._loaded, self._moved = True, time.monotonic()
        elif name == "Page.javascriptDialogOpening":
            self._chromium.send("Page.handleJavaScriptDialog", self._session, accept=False)

    def _shows(self, frame):
        """Another document has come: by a redirect, or because a script led there."""
        self._loader, self._loaded = frame["loaderId"], False
        # What the one before waited for is of no interest; a document's own request has its loader's number.
        self._coming &= {self._loader}
        self._lost.clear()
        if "unreachableUrl" in frame:
            self._failures.setdefault(self._loader, "ERR_FAILED")
        answer = self._answers.get(self._loader, {})
        self._visit.url, self._visit.status = frame["url"], answer.get("status")
        tls = answer.get("securityDetails")
        self._visit.certificate = tls and {"valid": True, "subject": tls["subjectName"], "issuer": tls["issuer"]}


def failure(reason):
    """A sentence of Chromium's word for what went wrong."""
    word = reason.removeprefix("net::")
    if word.startswith("ERR_CERT"):
        return f"its certificate is not good: {word}"
    return "it is no page, but a download" if word == "ERR_ABORTED" else f"it cannot be had: {word}"


# --- the ways to get a page: each is told the visit, and whether assets are wanted ---------------------------------


def unknown(visit, assets):
    raise Failed("this function does not know that way to render")


WAYS = {"": plain} | {render: functools.partial(rendered, render) for render in TYPES}
