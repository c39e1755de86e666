"""Render a page in headless Chromium on the box, which sees the page. Arguments: url, kind (png, pdf, mhtml), timeout.

Its scripts run; what it looks like then is sent as two messages: what came of it, as JSON, and the document's bytes,
empty where there is none. Within `timeout` seconds, with what is there by then (`whole` says whether that was all).
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "render"
# image = "browser"
# egress = "exit"
# memory = 512
# disk = 64
# ///

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
import urllib.parse

CHROMIUM = "/usr/lib/chromium/chromium-headless-shell"
TYPES = {"png": "image/png", "pdf": "application/pdf", "mhtml": "multipart/related"}
MAX_BYTES = 32 * 1024 * 1024
# The same for every user of every box: a page learns that a box has come, and not which, nor for whom.
WIDTH, HEIGHT, MAX_HEIGHT = 1280, 800, 10_000
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36"
LANGUAGES = "en-US,en"
# Of the time, for the picture; the rest is for the page.
PICTURE_S = 5.0
# Pages go out by the forwarder of the sandbox. Chromium's own calls home have a port where nobody listens.
WAY_OUT, NOWHERE = "socks5://127.0.0.1:1080", "socks5://127.0.0.1:9"
ENVIRONMENT = {"HOME": "/data", "TMPDIR": "/data", "TZ": "UTC", "LANG": "C.UTF-8", "LANGUAGE": "en_US"}
ENVIRONMENT |= {"FONTCONFIG_FILE": "/packages/fonts.conf"}
FLAGS = [
    "--headless", "--remote-debugging-pipe", "--user-data-dir=/data/chromium", "--disk-cache-size=16777216",
    # The sandbox around it is the box's: Chromium's own would need user namespaces, which no function gets.
    "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad",
    # What it would do of its own accord.
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-first-run", "--no-pings", "--dns-prefetch-disable",
    "--disable-features=AsyncDns,DnsOverHttps,OptimizationHints,Translate,MediaRouter",
    # Ways past the proxy. (There is no route either.)
    "--disable-quic", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--block-new-web-contents", "--mute-audio", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-US",
    f"--proxy-server={NOWHERE}", "--proxy-bypass-list=<-loopback>",
]  # fmt: skip


class Failed(Exception):
    """There is no picture, for a reason that the user is told."""


def render(url, kind="png", timeout=30):
    facts, document = draw(url, kind, timeout)
    api.send(json.dumps(facts))
    api.send(document)


def draw(url, kind, timeout):
    """What came of it, and the document. Never raises for what a page does."""
    deadline = time.monotonic() + max(float(timeout), 2.0)
    facts = {"url": url, "status": None, "type": TYPES.get(kind), "whole": False, "certificate": None, "error": ""}
    try:
        if kind not in TYPES:
            raise Failed(f"no kind of picture: {kind!r}; there are {', '.join(TYPES)}")
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise Failed("only http and https pages are rendered")
        with Chromium() as chromium:
            page = Page(chromium, deadline)
            try:
                page.load(url, deadline - min(PICTURE_S, float(timeout) / 2))
                document = page.picture(kind)
            finally:
                facts |= page.facts()
    except (Failed, ValueError) as why:
        return facts | {"error": str(why), "whole": False}, b""
    if len(document) > MAX_BYTES:
        return facts | {"error": f"it is larger than {MAX_BYTES} bytes", "whole": False}, b""
    return facts, document


class Chromium:
    """The browser, and its DevTools: JSON texts that end in a zero byte, over two pipes."""

    def __init__(self):
        self._calls = 0
        self._pending = bytearray()
        self._on_event = lambda message: None

    def __enter__(self):
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        # It wants them to be 3 and 4, which are taken here: through numbers that are free.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (theirs_in, theirs_out)]
        try:
            self._process = subprocess.Popen(
                [CHROMIUM, *FLAGS], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, pass_fds=(3, 4), start_new_session=True,
                preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(ends, (3, 4), strict=True)],
            )  # fmt: skip
        except OSError as why:
            raise Failed(f"Chromium does not start: {why.strerror}") from why
        finally:
            for fd in (*ends, theirs_in, theirs_out):
                os.close(fd)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def listen(self, on_event):
        """Whom to tell of events."""
        self._on_event = on_event

    def send(self, method, session=None, **parameters):
        """Ask for something; gives the number that the answer will have."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError as why:
            raise Failed("Chromium has ended") from why
        return self._calls

    def answer(self, number, deadline):
        """Its answer, or None if there is none in time."""
        while (message := self.receive(deadline)) is not None:
            if message.get("id") == number:
                if "error" in message:
                    raise Failed(f"Chromium cannot do it: {message['error'].get('message')}")
                return message["result"]
        return None

    def call(self, deadline, method, session=None, **parameters):
        """Ask and wait. Raises Failed where no answer comes in time."""
        result = self.answer(self.send(method, session, **parameters), deadline)
        if result is None:
            raise Failed(f"the time is over, and Chromium has not done {method}")
        return result

    def receive(self, deadline):
        """The next message, or None when the time is over. Events go to who listens, too."""
        while (end := self._pending.find(b"\0")) < 0:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return None
            data = os.read(self._in, 1 << 20)
            if not data:
                raise Failed("Chromium has ended")
            self._pending += data
            if len(self._pending) > 2 * MAX_BYTES:  # base64 and the rest
                raise Failed(f"it is larger than {MAX_BYTES} bytes")
        message = json.loads(self._pending[:end])
        del self._pending[: end + 1]
        if "method" in message:
            self._on_event(message)
        return message


class Page:
    """One page in a context of its own, that knows no other: no cookie or cache of anybody's."""

    def __init__(self, chromium, deadline):
        self._chromium, self._deadline = chromium, deadline
        call = chromium.call
        product = call(deadline, "Browser.getVersion")["product"].partition("/")[2].partition(".")[0]
        options = {"proxyServer": WAY_OUT, "proxyBypassList": "<-loopback>"}
        context = call(deadline, "Target.createBrowserContext", **options)["browserContextId"]
        target = {"url": "about:blank", "browserContextId": context, "width": WIDTH, "height": HEIGHT}
        target_id = call(deadline, "Target.createTarget", **target)["targetId"]
        self._session = call(deadline, "Target.attachToTarget", targetId=target_id, flatten=True)["sessionId"]
        call(deadline, "Browser.setDownloadBehavior", behavior="deny", browserContextId=context)
        call(deadline, "Target.setDiscoverTargets", discover=True)
        self._frame = self._ask("Page.getFrameTree")["frameTree"]["frame"]["id"]
        # By loader: what the server answered. Of the main frame's present document: its loader, whether it is complete.
        self._answers, self._failures, self._loader, self._quiet, self._shown = {}, {}, None, False, ""
        chromium.listen(self._note)
        for domain in ("Page", "Network"):
            self._ask(f"{domain}.enable")
        self._ask("Page.setLifecycleEventsEnabled", enabled=True)
        brands = [{"brand": name, "version": product} for name in ("Chromium", "Not.A/Brand")]
        hints = {"platform": "Linux", "platformVersion": "", "architecture": "x86", "model": "", "mobile": False}
        self._ask(
            "Emulation.setUserAgentOverride", userAgent=AGENT.format(product), acceptLanguage=LANGUAGES,
            platform="Linux x86_64", userAgentMetadata={**hints, "brands": brands},
        )  # fmt: skip
        self._ask("Emulation.setTimezoneOverride", timezoneId="UTC")
        self._ask("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)

    def load(self, url, deadline):
        """Go there, and wait until nothing more comes, or until the deadline. Raises Failed where there is no page."""
        number = self._chromium.send("Page.navigate", self._session, url=url)
        began = self._chromium.answer(number, deadline)
        if began is None:
            self._ask("Page.stopLoading")
            raise Failed("the server has not answered in time")
        if began.get("isDownload"):
            raise Failed("it is a download, and no page")
        if reason := began.get("errorText"):
            raise Failed(_sentence(reason))
        while not self._quiet:
            if self._chromium.receive(deadline) is None:
                break
        if not self._quiet:
            # What runs for ever must not keep us from the picture.
            self._chromium.send("Runtime.terminateExecution", self._session)
            self._chromium.send("Page.stopLoading", self._session)
        if self._loader in self._failures:
            raise Failed(_sentence(self._failures[self._loader]))

    def picture(self, kind):
        """The bytes of it."""
        if kind == "mhtml":
            return self._ask("Page.captureSnapshot", format="mhtml")["data"].encode()
        if kind == "pdf":
            return base64.b64decode(self._ask("Page.printToPDF", printBackground=True)["data"])
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": max(HEIGHT, min(int(size["height"]), MAX_HEIGHT)), "scale": 1}
        taken = self._ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def facts(self):
        """What is known of the document by now."""
        answer = self._answers.get(self._loader)
        if answer is None:
            return {}
        url = self._shown or answer["url"]
        return {"url": url, "status": answer["status"], "whole": self._quiet, "certificate": _certificate(answer)}

    def _ask(self, method, **parameters):
        return self._chromium.call(self._deadline, method, self._session, **parameters)

    def _note(self, message):
        name, told = message["method"], message["params"]
        if name == "Network.responseReceived" and told["type"] == "Document" and told.get("frameId") == self._frame:
            self._answers[told["loaderId"]] = told["response"]
        elif name == "Network.loadingFailed" and told["type"] == "Document":
            self._failures.setdefault(told["requestId"], told["errorText"])
        elif name == "Page.frameNavigated" and told["frame"]["id"] == self._frame:
            frame = told["frame"]
            self._loader, self._quiet, self._shown = frame["loaderId"], False, frame["url"]
            if "unreachableUrl" in frame:
                self._failures.setdefault(self._loader, "net::ERR_FAILED")
        elif name == "Page.lifecycleEvent" and told["frameId"] == self._frame and told["name"] == "networkIdle":
            self._quiet = told["loaderId"] == self._loader
        elif name == "Page.javascriptDialogOpening":
            self._chromium.send("Page.handleJavaScriptDialog", self._session, accept=False)
        elif name == "Target.targetCreated" and "openerId" in (target := told["targetInfo"]):
            self._chromium.send("Target.closeTarget", targetId=target["targetId"])


def _sentence(reason):
    """Of Chromium's word for what went wrong."""
    word = reason.removeprefix("net::")
    if word.startswith("ERR_CERT"):
        return f"the server's certificate does not verify ({word})"
    if word == "ERR_ABORTED":
        return "it is no page: a download, or nothing at all"
    return f"the page cannot be had ({word})"


def _certificate(answer):
    """Whose it was and who vouched; None where the page came in the clear."""
    details = answer.get("securityDetails")
    if details is None:
        return None
    days = [time.strftime("%Y-%m-%d", time.gmtime(details[end])) for end in ("validFrom", "validTo")]
    told = {"subject": details["subjectName"], "issuer": details["issuer"], "from": days[0], "to": days[1]}
    return told | {"protocol": details["protocol"], "secure": answer.get("securityState") == "secure"}
