"""The paper's figure: a page fetched on one box and left at another, its user's process killed in the middle; then
collected by another process, with the ticket alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bento_tor.controller.streams import open_stream

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

MARK = b"a page that only its reader knows"
PAGE = b"<html><title>caf\xe9</title><script>alert(1)</script>" + MARK * 4000 + b"</html>"


class Web:
    """A web server at an onion address, which answers when it is let."""

    def __init__(self, network: Any) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        self._tor = network.connect(network.client)
        port = self._server.getsockname()[1]
        made = self._tor.__enter__().ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK Port=80,127.0.0.1:{port}")
        self.host = made.lines[0].removeprefix("ServiceID=") + ".onion"
        open_stream(network.client.socks, self.host, 80, timeout_s=90).close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._server.accept()[0],), daemon=True).start()

    def _answer(self, conn: socket.socket) -> None:
        with conn, suppress(OSError):
            head = conn.recv(65536)
            if not head:
                return
            self.asked.set()
            self.go.wait(120)
            status, body = (b"404 Not Found", b"no") if b"missing" in head else (b"200 OK", PAGE)
            kind = b"Content-Type: text/html; charset=latin-1\r\n"
            conn.sendall(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, kind, len(body)) + body)

    def close(self) -> None:
        self._tor.__exit__(None, None, None)
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()


@pytest.fixture(scope="module")
def web(tor_network) -> Iterator[Web]:
    made = Web(tor_network)
    yield made
    made.close()


def client(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bento_tor.cli", "client", *arguments]


def environment(folder: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("BENTO_TOR")}
    return mine | {"BENTO_TOR_KEYRING": str(folder / "keyring.json")}


def test_a_page_is_collected_with_the_ticket_alone_after_its_user_was_killed(pair, web, tor_network, tmp_path) -> None:
    here, there = (box.told["address"] for box in pair)
    socks = ("--socks", str(tor_network.client.socks))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    words = ("browse-to-dropbox", f"http://{web.host}/page", "--box", here, "--dropbox-box", there, "--egress", "tor")
    asking = subprocess.Popen(
        client(first, *words, *socks, "--wait", "--padding", "64", "-o", str(first / "ticket")),
        env=environment(first), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert web.asked.wait(120), asking.communicate(timeout=10)
    finally:
        asking.kill()
        asking.communicate()
    assert asking.returncode == -9
    ticket = (first / "ticket").read_text()
    assert f":{there}:dropbox-key:" in f":{ticket}"
    web.go.set()
    done = collect(second, ticket, socks)
    collected = (second / "page").read_bytes()
    assert collected.count(MARK) == 4000 and "caf\u00e9".encode() in collected and b"<script" not in collected
    told = json.loads(done.stdout)
    assert told["status"] == 200 and told["gets_left"] == 0
    # It is erased, and was sealed while it was there.
    again = subprocess.run(
        client(second, "dropbox", "page", "-", "-o", "again", *socks),
        input=ticket, text=True, capture_output=True, env=environment(second), cwd=second, timeout=120,
    )  # fmt: skip
    assert again.returncode == 7 and "no such drop box" in again.stderr
    assert not any(MARK in file.read_bytes() for box in pair for file in box.state.rglob("*") if file.is_file())


def collect(folder: Path, ticket: str, socks: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """In another process, as often as it takes until something is there."""
    for _ in range(60):
        done = subprocess.run(
            client(folder, "dropbox", "page", "-", "-o", "page", "--json", *socks),
            input=ticket, text=True, capture_output=True, env=environment(folder), cwd=folder, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            return done
        assert "nothing has been put" in done.stderr + done.stdout, done
    raise AssertionError(done)
