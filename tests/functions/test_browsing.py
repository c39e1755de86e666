"""`client browse` at a real box with a way out, over real circuits; the bytes counted at the client's SOCKS socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

SITE = "http://web.example.com"
Browse = Callable[..., tuple[subprocess.CompletedProcess[str], Any]]


@pytest.fixture
def browse(web_box: Any, tor_network: Any, tap: Any, bento: Any) -> Browse:
    """`bento-tor client browse`, with a tap at tor's SOCKS port: what it printed, and what the tap saw."""
    socks = tor_network.client.socks
    wire = tap((socks.host, socks.port))

    def run(path: str, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
        url = path if "://" in path else SITE + path
        address = ["--box", web_box.told["address"], "--socks", wire.address, "--json"]
        done = bento("client", "browse", url, "-o", "page", *address, *options)
        return done, wire.tapped[-1]

    return run


def test_a_page_is_fetched_made_harmless_and_saved(browse: Browse, tmp_path: Path) -> None:
    done, _ = browse("/", "--assets", "--padding", "0", "--release", "0")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["url"], told["status"], told["certificate"], told["error"]) == (f"{SITE}/", 200, None, None)
    text = (tmp_path / "page").read_text()
    assert "<h1>Hello</h1>" in text and text.count("data:image/png") >= 3
    assert not any(word in text for word in ("script", "alert", "onload", 'src="http', "url(/"))


# Ten pages of different sizes, and three that come to nothing.
PATHS = [
    *(f"/bytes/{size}" for size in (20, 500, 5000, 20_000, 50_000, 90_000)),
    "/",
    "/cookie",
    "/cyrillic",
    "/nowhere",
]
FAILURES = ["/endless", "/silent", "http://nowhere.example.com/"]


def test_every_page_and_every_failure_has_one_size_one_time_and_one_request(browse: Browse) -> None:
    options = ["--padding", "150000", "--release", "3", "--page-timeout", "2.5", "--limit", "100000"]
    browse("/", *options)  # the policy is fetched once
    seen = {}
    for path in PATHS + FAILURES:
        done, seen[path] = browse(path, *options)
        assert done.returncode == (1 if path in FAILURES else 0), (path, done.stderr)
    assert {each.received for each in seen.values()} == {150_000}
    # SOCKS greeting, address and request; the flight; two Acks and the last; the erasing. Always as much.
    assert len({each.sent for each in seen.values()}) == 1, {path: each.sent for path, each in seen.items()}
    for path, each in seen.items():
        assert 3.0 <= each.bulk_at_s < 4.5, (path, each.bulk_at_s)
        assert each.last_at_s - each.bulk_at_s < 1.5, path


def test_a_million_is_a_million(browse: Browse) -> None:
    for path, times in (("/bytes/1000", 1), ("/nowhere", 1), ("/bytes/2500000", 2)):
        done, seen = browse(path, "--padding", "1000000", "--release", "0")
        assert done.returncode == 0, done.stderr
        assert seen.received == times * 1_000_000, path


def test_a_bad_certificate_is_a_sentence_and_no_page(browse: Browse, tmp_path: Path) -> None:
    done, _ = browse("https://web.example.com/", "--padding", "0", "--release", "0")
    assert done.returncode == 1 and not (tmp_path / "page").exists()
    assert "its certificate is not good: self-signed certificate" in done.stderr


def test_what_the_relays_policy_does_not_let_out_is_a_sentence(browse: Browse) -> None:
    for url in ("http://10.99.0.1/", "http://127.0.0.1:9051/", "http://web.example.com:81/"):
        done, _ = browse(url, "--padding", "0", "--release", "0")
        assert done.returncode == 1 and "the page did not come" in done.stderr, done.stderr


def test_ctrl_c_is_not_seen_from_outside(
    browse: Browse, web_box: Any, tor_network: Any, tap: Any, tmp_path: Path
) -> None:
    socks = tor_network.client.socks
    wire = tap((socks.host, socks.port))
    command = [sys.executable, "-m", "bento_tor.cli", "client", "browse", f"{SITE}/", "--box", web_box.told["address"]]
    command += ["--socks", wire.address, "--padding", "100000", "--release", "4"]
    environment = os.environ | {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (wire.tapped and sum(size for _, size in wire.tapped[-1].up) > 4096):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "so that nobody sees you leave" in said
    assert process.returncode == 130
    assert wire.tapped[-1].received == 100_000 and wire.tapped[-1].bulk_at_s >= 4
