"""`browser` without a box: its code in this process, a real web server on loopback, `api` on a list."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests.adapters
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

LIMIT = 1 << 20


class Api:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.promised: list[tuple[int, float]] = []

    def send(self, data: bytes) -> None:
        assert self.promised, "the promise comes first"
        self.sent.append(data)

    def pad_to(self, multiple: int, release: float) -> None:
        self.promised.append((multiple, release))


@pytest.fixture(scope="module")
def site(load: Callable[[Path], Any]) -> Any:
    return load(Path(__file__).parent / "site.py")


def certificate(directory: Path, name: str) -> Path:
    """A key and a certificate of its own for localhost; nobody vouches for it but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    path = directory / f"{name}.pem"
    path.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture(scope="module")
def served(site: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The site on loopback: plain, with a certificate that is trusted in the tests that want it, and its file."""
    pem = certificate(tmp_path_factory.mktemp("tls"), "here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    loop, servers = asyncio.new_event_loop(), []

    async def start() -> None:
        for tls in (None, context):
            servers.append(await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=tls))

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    yield SimpleNamespace(http=f"http://localhost:{ports[0]}", https=f"https://localhost:{ports[1]}", pem=pem)

    def stop() -> None:
        for server in servers:
            server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_later(0.1, loop.stop)

    loop.call_soon_threadsafe(stop)
    thread.join(10)
    loop.close()


def unpack(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    line, _, rest = zlib.decompress(message).partition(b"\n")
    head, parts = json.loads(line), []
    for part in head["parts"]:
        parts.append(rest[: part["length"]])
        rest = rest[part["length"] :]
    assert not rest
    return head, parts


def browse(source: Callable[[str], str], url: str, **options: Any) -> tuple[dict[str, Any], list[bytes]]:
    api = Api()
    module = {"api": api, "__name__": "__bento__"}
    exec(compile(source("browser"), "browser.py", "exec"), module)
    module["browser"](url, padding=1000, release=2, **({"timeout": 10, "limit": LIMIT} | options))
    assert api.promised == [(1000, 2)] and len(api.sent) == 1, "one burst"
    return unpack(api.sent[0])


def test_a_page_comes_as_it_is(source, served, site) -> None:
    for path in ("/", "/zipped"):
        head, parts = browse(source, served.http + path)
        assert (head["status"], head["error"], head["certificate"]) == (200, None, None)
        assert (head["url"], parts) == (served.http + path, [site.PAGE])


def test_with_assets_all_that_is_seen_comes_too(source, served, site) -> None:
    head, parts = browse(source, served.http + "/", assets=True)
    names = [part["url"].removeprefix(served.http) for part in head["parts"]]
    assert names[0] == "/" and sorted(names[1:]) == ["/bg.png", "/big.png", "/deep.png", "/red.png", "/style.css"]
    assert parts[names.index("/red.png")] == site.png()
    assert head["error"] is None


# The end of a page's address; what is said of it, or its bytes.
ENDINGS = [
    ("/chain/5", 200, None, b"the end of the chain"),
    ("/chain/20", 200, None, b"the end of the chain"),
    ("/chain/21", 302, "it redirects more than 20 times", None),
    ("/loop", 301, "it redirects more than 20 times", None),
    ("/bomb-on-the-way", 200, None, b"the end of the chain"),
    ("/to-a-file", 302, "No connection adapters were found", None),
    ("/cookie", 200, None, b"taste=sweet"),
    ("/jar", 200, None, b"no cookie"),
    ("/nowhere", 404, None, b"<h1>there is no such page</h1>"),
    ("/error", 503, None, b"<h1>come back later</h1>"),
    ("/endless", 200, f"it is larger than {LIMIT} bytes", None),
    ("/bomb", 200, f"it is larger than {LIMIT} bytes", None),
    ("/brotli", 200, "it is encoded as br, which was not asked for", None),
    ("/cut", 200, "IncompleteRead", None),
    ("/rubbish", None, "BadStatusLine", None),
]


@pytest.mark.parametrize(("path", "status", "error", "data"), ENDINGS, ids=[row[0] for row in ENDINGS])
def test_it_ends_as_in_a_browser_or_in_a_sentence(source, served, path, status, error, data) -> None:
    head, parts = browse(source, served.http + path)
    assert head["status"] == status
    assert error in head["error"] if error else head["error"] is None, head
    assert parts == ([] if data is None else [data])
    assert "0x" not in (head["error"] or ""), "no address of an object"


@pytest.mark.parametrize("path", ["/slow", "/silent", "/dripping-header"])
def test_the_time_is_over_when_it_is_over(source, served, path) -> None:
    began = time.monotonic()
    head, parts = browse(source, served.http + path, timeout=1.0)
    assert 0.9 < time.monotonic() - began < 10
    assert head["error"] in ("it did not arrive in 1 seconds", "it does not answer") and parts == []


def test_what_came_in_time_is_shown_without_what_did_not(source, served) -> None:
    head, parts = browse(source, served.http + "/slow-picture", assets=True, timeout=4)
    assert head["error"] is None and parts[0].startswith(b"<p>the text</p>")
    assert [part["url"].removeprefix(served.http) for part in head["parts"][1:]] == ["/red.png"]


def test_characters_travel_as_the_site_sent_them(source, served, site) -> None:
    head, parts = browse(source, served.http + "/cyrillic")
    assert parts[0].decode("windows-1251") == site.CYRILLIC
    assert head["parts"][0]["type"] == "text/html; charset=windows-1251"


def test_a_certificate_that_nobody_vouches_for_is_told_and_no_page(source, served) -> None:
    head, parts = browse(source, served.https + "/")
    assert head["error"] == "its certificate is not good: self-signed certificate" and parts == []


def test_a_good_certificate_is_told(source, served, monkeypatch, site) -> None:
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(served.pem))
    monkeypatch.setattr(requests.adapters, "_preloaded_ssl_context", None, raising=False)
    head, parts = browse(source, served.https + "/")
    assert head["certificate"] == {"valid": True, "subject": "here", "issuer": "here"}, head
    assert parts == [site.PAGE]
    head, _ = browse(source, served.https.replace("localhost", "127.0.0.1") + "/")
    assert "certificate is not good: IP address mismatch" in head["error"]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://localhost:1/", "Connection refused"),
        ("nonsense", "Invalid URL"),
        ("file:///etc/passwd", "No connection adapters"),
        ("http://", "No host supplied"),
    ],
)
def test_no_page_is_a_sentence(source, url, error) -> None:
    head, parts = browse(source, url)
    assert error in head["error"] and parts == []


def test_an_unknown_way_to_render_is_a_sentence(source, served) -> None:
    head, parts = browse(source, served.http + "/", render="hologram")
    assert "does not know" in head["error"] and parts == []
