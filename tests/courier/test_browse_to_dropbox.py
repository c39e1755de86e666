"""The paper's figure: a page fetched on one box and left at another, its user's process killed in the middle; then
collected by another process, with the ticket alone. Once for each way out of the first box."""

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

from bento_tor.client.page import Page, Part
from bento_tor.client.wrapping import wrap
from bento_tor.controller.streams import open_stream

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

KIND = "text/html; charset=latin-1"
MARK = b"a page that only its reader knows"
PAGE = b"<html><title>caf\xe9</title><script>alert(1)</script>" + MARK * 4000 + b"</html>"


class OnionWeb:
    """A web server at an onion address, which answers when it is let."""

    def __init__(self, network: Any) -> None:
        self.asked: list[bytes] = []
        self._go = threading.Event()
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
            self.asked.append(head.splitlines()[0])
            self._go.wait(120)
            kind = f"Content-Type: {KIND}\r\n".encode()
            conn.sendall(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (kind, len(PAGE)) + PAGE)

    def let(self) -> None:
        self._go.set()

    def close(self) -> None:
        self._tor.__exit__(None, None, None)
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()


class PublicWeb:
    """The same at a public address of a world of its own: site.py."""

    host = "web.example.com"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "page").write_bytes(PAGE)

    @property
    def asked(self) -> list[bytes]:
        requests = self._directory / "requests"
        return requests.read_bytes().splitlines() if requests.exists() else []

    def let(self) -> None:
        (self._directory / "let").touch()


@pytest.fixture
def by_tor(pair, tor_network) -> Iterator[tuple[Any, Any]]:
    """A box that gets pages through circuits, and a page for it."""
    web = OnionWeb(tor_network)
    yield pair[0], web
    web.close()


@pytest.fixture
def by_exit(outside) -> tuple[Any, Any]:
    """A box that gets pages straight, and a page for it."""
    box, directory = outside
    return box, PublicWeb(directory)


def client(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "bento_tor.cli", "client", *arguments]


def environment(folder: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("BENTO_TOR")}
    return mine | {"BENTO_TOR_KEYRING": str(folder / "keyring.json")}


@pytest.mark.parametrize("egress", ["tor", "exit"])
def test_a_page_is_collected_with_the_ticket_alone_after_its_user_was_killed(
    egress: str, request: pytest.FixtureRequest, pair: Any, tor_network: Any, eventually: Any, tmp_path: Path
) -> None:
    first_box, web = request.getfixturevalue(f"by_{egress}")
    here, there = first_box.told["address"], pair[1].told["address"]
    url = f"http://{web.host}/page"
    socks = ("--socks", str(tor_network.client.socks))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    words = ("browse-to-dropbox", url, "--box", here, "--dropbox-box", there, "--egress", egress)
    asking = subprocess.Popen(
        client(first, *words, *socks, "--wait", "--padding", "64", "-o", str(first / "ticket")),
        env=environment(first), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        eventually(lambda: web.asked or asking.poll() is not None, within_s=120)
        assert asking.poll() is None, asking.communicate()
    finally:
        asking.kill()
        asking.communicate()
    assert asking.returncode == -9
    ticket = (first / "ticket").read_text()
    assert f":{there}:dropbox-key:" in f":{ticket}"
    web.let()
    done = collect(second, ticket, socks)
    collected = (second / "page").read_bytes()
    assert MARK * 4000 in collected and "caf\u00e9".encode() in collected and b"<script" not in collected
    assert collected == wrap(Page(url, 200, None, "", 0, (Part(url, KIND, PAGE),)))[1]
    told = json.loads(done.stdout)
    assert told["status"] == 200 and told["gets_left"] == 0
    assert web.asked == [b"GET /page HTTP/1.1"]
    # It is erased, and was sealed while it was there.
    again = subprocess.run(
        client(second, "dropbox", "page", "-", "-o", "again", *socks),
        input=ticket, text=True, capture_output=True, env=environment(second), cwd=second, timeout=120,
    )  # fmt: skip
    assert again.returncode == 7 and "no such drop box" in again.stderr
    kept = [file for box in (first_box, pair[1]) for file in box.state.rglob("*") if file.is_file()]
    assert kept and not any(MARK in file.read_bytes() for file in kept)


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
