"""`client browse-to-dropbox` and `client dropbox page`, by a SOCKS port of the tests: what is left, what is said."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bento_tor.client import connect
from bento_tor.client.dropbox import Getting
from bento_tor.client.sealing import SALT_BYTES, NotWhatWasPut, Opener, plain_bytes, public_key, salt_for, unwrap
from bento_tor.client.tickets import DropTicket, parse_drop
from bento_tor.controller.onion import onion_address
from bento_tor.errors import ConfigError

PAGE = b"<p>" + b"a page " * 30_000 + b"</p>"
KIB = 1024


def web(
    body: bytes, *, status: bytes = b"200 OK", head: bytes = b"", kind: bytes = b"text/html"
) -> Callable[[socket.socket], None]:
    def answer(conn: socket.socket) -> None:
        conn.recv(65536)
        head_ = b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\nContent-Type: %s\r\n\r\n" % (status, head, len(body), kind)
        conn.sendall(head_ + body)

    return answer


@pytest.fixture
def left(bento, near, far, switch, tmp_path) -> Callable[..., DropTicket]:
    """Have a page left; its ticket."""

    def leave(url: str, *options: str) -> DropTicket:
        words = ("--box", near.told["address"], "--dropbox-box", far.told["address"], "--socks", switch.address)
        done = bento("client", "browse-to-dropbox", url, *words, "--egress", "tor", "--wait", "--json", *options)
        assert done.returncode == 0, done.stderr
        return parse_drop(json.loads(done.stdout)["ticket"])

    return leave


@pytest.fixture
def page(bento, switch) -> Callable[..., Any]:
    """Collect one."""

    def collect(ticket: DropTicket, *options: str) -> Any:
        words = ("client", "dropbox", "page", "-", "-o", "page", "--socks", switch.address, *options)
        return bento(*words, stdin=str(ticket))

    return collect


def size_of(ticket: DropTicket, switch: Any) -> int:
    """What the box that keeps it sees."""

    class Nowhere:
        chunks = 0

        def append(self, chunk: bytes) -> None:
            self.chunks += 1

    with connect(ticket.box, socks=switch.address, timeout_s=30) as box:
        getting = Getting(box, ticket, Nowhere())
        getting.body()
    return getting.size


@pytest.mark.sandbox
def test_a_page_and_an_error_are_left_alike(left, page, switch, tmp_path) -> None:
    # What ships is what runs, whatever lies in the user's folder.
    for name in ("browse_to_dropbox", "dropbox"):
        (tmp_path / name).write_text("def put(): pass")
    host = switch.lead_new("page", web(PAGE))
    padded = ("--padding", "64")
    good = left(f"http://{host}/", *padded)
    bad = left(f"http://{onion_address(b'none'.ljust(32, b'.'))}/", *padded)
    missing = left(f"http://{switch.lead_new('404', web(b'no such page', status=b'404 Not Found'))}/", *padded)
    assert len({size_of(ticket, switch) for ticket in (good, bad, missing)}) == 1
    assert plain_bytes(size_of(good, switch)) == 64 * KIB
    done = page(good, "--json")
    assert (tmp_path / "page").read_bytes().count(b"a page ") == 30_000, done.stderr
    assert json.loads(done.stdout)["url"] == f"http://{host}/"
    (tmp_path / "page").unlink()
    done = page(missing)
    assert "says: 404" in done.stderr and b"no such page" in (tmp_path / "page").read_bytes()
    (tmp_path / "page").unlink()
    done = page(bad)
    assert done.returncode == 1 and "the page did not come: " in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("page")]


@pytest.mark.sandbox
def test_what_no_page_can_be_made_of_is_not_lost(left, page, switch, tmp_path) -> None:
    host = switch.lead_new("film", web(b"moving pictures", kind=b"video/mp4"))
    done = page(left(f"http://{host}/", "--padding", "0"))
    assert done.returncode == 1 and "what came is in page.message" in done.stderr
    assert b"moving pictures" in zlib.decompress((tmp_path / "page.message").read_bytes())


@pytest.mark.sandbox
def test_a_page_that_becomes_too_long_is_an_error(left, page, switch) -> None:
    bomb = gzip.compress(bytes(40 << 20))
    host = switch.lead_new("bomb", web(bomb, head=b"Content-Encoding: gzip\r\n"))
    done = page(left(f"http://{host}/", "--most", "2"))
    assert done.returncode == 1 and "larger than 2097152 bytes" in done.stderr


@pytest.mark.sandbox
def test_a_page_that_is_too_slow_is_an_error(left, page, switch) -> None:
    def trickle(conn: socket.socket) -> None:
        conn.recv(65536)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        conn.settimeout(0.2)
        while True:
            conn.sendall(b".")
            with suppress(TimeoutError):
                if not conn.recv(1):
                    return

    done = page(left(f"http://{switch.lead_new('slow', trickle)}/", "--page-timeout", "2"))
    assert done.returncode == 1 and "did not arrive in 2 seconds" in done.stderr


@pytest.mark.sandbox
def test_what_cannot_be_is_said_at_once(bento, near, far, switch) -> None:
    start = ("client", "browse-to-dropbox", "http://x/", "--socks", switch.address)
    done = bento(*start, "--box", near.told["address"], "--dropbox-box", "unix:/x")
    assert done.returncode == 3 and "no onion address" in done.stderr
    done = bento(*start, "--box", near.told["address"], "--dropbox-box", far.told["address"], "--most", "64")
    assert done.returncode == 7 and "keeps 20000000 bytes of one function" in done.stderr


def test_a_ticket_of_a_key_is_another_one_than_that_of_a_secret() -> None:
    ticket = DropTicket("a" * 56 + ".onion", b"t" * 32, b"s" * 32, to_key=True)
    assert parse_drop(str(ticket)) == ticket
    assert not parse_drop(str(ticket).replace("dropbox-key", "dropbox")).to_key
    with pytest.raises(ConfigError, match="not the ticket of a drop box"):
        parse_drop(str(ticket).replace("dropbox-key", "dropbox-keys"))


@pytest.fixture
def sealed() -> tuple[bytes, Any]:
    """A private key, and what the function seals to it."""
    module: dict[str, Any] = {"__name__": "__bento__"}
    path = Path(__file__).parent.parent.parent / "functions" / "browse_to_dropbox.py"
    exec(compile(path.read_text("utf-8"), path.name, "exec"), module)
    private = bytes(range(32))
    return private, module["Sealed"](PAGE, public_key(private))


def test_the_function_seals_what_the_client_opens(sealed) -> None:
    private, made = sealed
    salt, wrapped = made.header[:SALT_BYTES], made.header[SALT_BYTES:]
    secret = unwrap(private, salt, wrapped)
    whole = b"".join(made.pieces(0))
    assert len(whole) == made.size and b"".join(made.pieces(100_000)) == whole[100_000:]
    opener = Opener(secret, salt)
    plain = b"".join(chunk.plain for chunk in [*opener.feed(whole), opener.finish()])
    assert plain == PAGE
    assert salt_for(secret, hashlib.sha256(PAGE).digest()) == salt


@pytest.mark.parametrize("what", ["the salt", "the wrapped secret", "another key", "cut short"])
def test_what_was_sealed_to_no_key_of_ours_is_nothing(sealed, what) -> None:
    private, made = sealed
    salt, wrapped = made.header[:SALT_BYTES], made.header[SALT_BYTES:]
    changed = {
        "the salt": (private, bytes([salt[0] ^ 1]) + salt[1:], wrapped),
        "the wrapped secret": (private, salt, wrapped[:-1] + bytes([wrapped[-1] ^ 1])),
        "another key": (b"k" * 32, salt, wrapped),
        "cut short": (private, salt, wrapped[:20]),
    }[what]
    with pytest.raises(NotWhatWasPut):
        unwrap(*changed)
