"""`client browse` at a real box with a way out, over real circuits; the bytes counted at the client's SOCKS socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bento_tor.client import browsing, connect
from bento_tor.client.browsing import Wish
from bento_tor.client.page import unpack

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

SITE = "http://web.example.com"
Browse = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def browse(web_box: Any, tor_network: Any, bento: Any) -> Browse:
    """`bento-tor client browse`, without padding."""

    def run(path: str, *options: str) -> subprocess.CompletedProcess[str]:
        url = path if "://" in path else SITE + path
        address = ["--box", web_box.told["address"], "--socks", str(tor_network.client.socks), "--json"]
        return bento("client", "browse", url, "-o", "page", "--padding", "0", "--release", "0", *address, *options)

    return run


def test_a_page_is_fetched_made_harmless_and_saved(browse: Browse, tmp_path: Path) -> None:
    done = browse("/", "--assets")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["url"], told["status"], told["certificate"], told["error"]) == (f"{SITE}/", 200, None, None)
    text = (tmp_path / "page").read_text()
    assert "<h1>Hello</h1>" in text and text.count("data:image/png") >= 3
    assert not any(word in text for word in ("script", "alert", "onload", 'src="http', "url(/"))


@pytest.mark.parametrize(("kind", "begin"), [("html", b"<!doctype html>"), ("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-")])
def test_a_page_is_rendered_made_harmless_and_saved(browse: Browse, tmp_path: Path, kind: str, begin: bytes) -> None:
    done = browse("/scripted", "--render", kind)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["url"], told["status"], told["error"]) == (f"{SITE}/scripted", 200, None)
    saved = (tmp_path / "page").read_bytes()
    assert saved.startswith(begin)
    if kind == "html":
        assert b"the script ran" in saved and b"data:image/png" in saved and b"color: green" in saved
        assert not any(word in saved for word in (b"<script", b"cid", b'src="http'))


def test_a_bad_certificate_is_a_sentence_and_no_page(browse: Browse, tmp_path: Path) -> None:
    done = browse("https://web.example.com/")
    assert done.returncode == 1 and not (tmp_path / "page").exists()
    assert "its certificate is not good: self-signed certificate" in done.stderr


def test_what_the_policy_does_not_let_out_is_a_sentence(browse: Browse) -> None:
    done = browse("http://127.0.0.1:9051/")
    assert done.returncode == 1 and "the page did not come" in done.stderr, done.stderr


# Ten pages of different sizes, and what comes to nothing.
SIZES = (20, 500, 5000, 20_000, 50_000, 90_000)
PAGES = [f"{SITE}/bytes/{size}" for size in SIZES]
PAGES += [SITE + path for path in ("/", "/cookie", "/cyrillic", "/error")]
FAILURES = [SITE + path for path in ("/endless", "/silent", "/bomb")]
FAILURES += ["http://nowhere.example.com/", "https://web.example.com/"]
# In `make soak` at full size, one at a time, and every page must be there; here many at once, on a machine that others
# load.
SOAK = bool(os.environ.get("BENTO_TOR_SOAK"))
RELEASE_S = 16.0
PADDING_BYTES = 1_000_000 if SOAK else 150_000
AT_ONCE, AT_LEAST = (1, len(PAGES)) if SOAK else (8, 5)


def test_every_page_and_every_failure_has_one_size_one_time_and_one_request(
    web_box: Any, tor_network: Any, tap: Any
) -> None:
    socks = tor_network.client.socks
    with connect(web_box.told["address"], socks=str(socks), timeout_s=60) as there:
        there.policy()
        known = there.policy_digest

    arrived = set()

    def visit(url: str) -> tuple[str, Any]:
        wire = tap((socks.host, socks.port))
        wish = Wish(url, padding_bytes=PADDING_BYTES, release_s=RELEASE_S, timeout_s=9.0, limit_bytes=100_000)
        with connect(web_box.told["address"], socks=wire.address, timeout_s=60, policy_digest=known) as there:
            session = there.run(browsing.function(wish), browsing.call(wish))
            page = unpack(browsing.collect(session), 1 << 20)
            there.shutdown(session.maybe_shutdown, last=True)
        if page.parts:
            arrived.add(url)
        return url, wire.tapped[0]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = dict(pool.map(visit, PAGES + FAILURES))
    # Some may be too late for --page-timeout, and must look like the others all the more.
    assert arrived <= set(PAGES) and len(arrived) >= AT_LEAST, arrived
    assert {each.received for each in seen.values()} == {PADDING_BYTES}
    # SOCKS' greeting and request, the flight, two Acks and the last one, the erasing: always as much.
    assert len({each.sent for each in seen.values()}) == 1, {url: each.sent for url, each in seen.items()}
    for url, each in seen.items():
        # Nothing before its time; the load of this machine may make it late, but not by a whole step.
        assert RELEASE_S - 1 < each.bulk_at_s < 2 * RELEASE_S - 1, (url, each.bulk_at_s)


def test_a_million_is_a_million(web_box: Any, tor_network: Any, tap: Any, bento: Any) -> None:
    socks = tor_network.client.socks
    wire = tap((socks.host, socks.port))
    done = bento(
        *("client", "browse", f"{SITE}/nowhere", "--padding", "1000000", "--release", "0", "-o", "-"),
        *("--box", web_box.told["address"], "--socks", wire.address),
    )
    assert done.returncode == 0 and "there is no such page" in done.stdout and "404" in done.stderr, done
    assert wire.tapped[0].received == 1_000_000


def test_what_is_opened_is_a_file_of_ours(web_box: Any, tor_network: Any, bento: Any, tmp_path: Path) -> None:
    shown = tmp_path / "browser"
    shown.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/shown\n')
    shown.chmod(0o755)
    done = bento(
        *("client", "browse", f"{SITE}/", "--padding", "0", "--release", "0", "--open"),
        *("--box", web_box.told["address"], "--socks", str(tor_network.client.socks)),
        BROWSER=f"{shown} %s",
    )
    assert done.returncode == 0, done.stderr
    place = Path((tmp_path / "shown").read_text().removeprefix("file://"))
    assert "Content-Security-Policy" in place.read_text() and place.parent.stat().st_mode & 0o77 == 0
    shutil.rmtree(place.parent)


def test_ctrl_c_is_not_seen_from_outside(web_box: Any, tor_network: Any, tap: Any, tmp_path: Path) -> None:
    socks = tor_network.client.socks
    wire = tap((socks.host, socks.port))
    command = [sys.executable, "-m", "bento_tor.cli", "client", "browse", f"{SITE}/", "--box", web_box.told["address"]]
    command += ["--socks", wire.address, "--padding", "100000", "--release", "4"]
    environment = os.environ | {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (wire.tapped and wire.tapped[-1].sent > 4096):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=90)[1]
    assert "so that nobody sees you leave" in said
    assert process.returncode == 130 and not list(tmp_path.glob("*.html"))
    assert wire.tapped[-1].received == 100_000 and wire.tapped[-1].bulk_at_s > 3
