"""The way to a box: addresses, and what goes wrong on the way, in words."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from bento_tor.client.route import BoxAddress, dial, parse_address
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import onion_address
from bento_tor.errors import BentoError, ConfigError, ConnectError, TorError

ONION = onion_address(b"s" * 32)


def test_addresses() -> None:
    assert parse_address(ONION) == BoxAddress("onion", ONION, 80)
    assert parse_address(ONION.upper() + ":8080") == BoxAddress("onion", ONION, 8080)
    assert parse_address("unix:/x") == BoxAddress("direct", "unix:/x")


@pytest.mark.parametrize(
    "text",
    ["", "example.org", ONION[:-7], "b" + ONION[1:], ONION + ":0", ONION + ":x", ONION + ":99999", "unix:", "a b"],
)
def test_what_is_no_address_is_refused_before_tor_is_asked(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


def test_no_tor_is_said_with_the_place_that_was_tried(tmp_path: Path) -> None:
    for proxy in (Endpoint.parse("127.0.0.1:1"), Endpoint.parse(f"unix:{tmp_path}/none")):
        with pytest.raises(TorError, match="no tor answers as a SOCKS proxy") as caught:
            dial(parse_address(ONION), proxy, isolation="x", timeout_s=5)
        assert str(proxy) in caught.value.message


def test_no_box_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="no box listens"):
        dial(parse_address(f"unix:{tmp_path}/none"), Endpoint.parse("127.0.0.1:1"), isolation="x", timeout_s=5)


def answer_once(listener: socket.socket, reply: bytes, heard: list[bytes]) -> None:
    """A SOCKS server for one connection, which answers the request with `reply`, a byte at a time."""
    peer, _ = listener.accept()
    with peer:
        peer.recv(64)
        peer.sendall(b"\x05\x02")
        heard.append(peer.recv(512))
        peer.sendall(b"\x01\x00")
        heard.append(peer.recv(512))
        with suppress(BrokenPipeError):  # a client that has read why not leaves
            for byte in reply:
                peer.sendall(bytes([byte]))


def ask_fake_socks(tmp_path: Path, reply: bytes) -> tuple[BentoError | None, list[bytes]]:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socks"))
        listener.listen()
        server = threading.Thread(target=answer_once, args=(listener, reply, heard))
        server.start()
        proxy = Endpoint.parse(f"unix:{tmp_path}/socks")
        try:
            dial(parse_address(ONION), proxy, isolation="word", timeout_s=5).close()
            return None, heard
        except BentoError as error:
            return error, heard
        finally:
            server.join()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x04, "cannot be found"),
        (0x05, "the box behind it is not"),
        (0xF0, "no descriptor"),
        (0xF2, "introduced"),
        (0xF4, "client authorisation"),
        (0xF6, "not a valid onion address"),
        (0x77, "0x77"),
    ],
)
def test_tors_answers_become_sentences(tmp_path: Path, code: int, words: str) -> None:
    error, _ = ask_fake_socks(tmp_path, bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
    assert isinstance(error, ConnectError) and words in error.message and error.hint and error.exit_code == 6


def test_the_name_is_resolved_by_tor_and_the_isolation_word_is_not_shown(tmp_path: Path) -> None:
    error, heard = ask_fake_socks(tmp_path, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    assert error is None
    assert ONION.encode() in heard[1]
    assert b"word" not in heard[0] and not heard[0][2:].startswith(b"<torS0X>")
