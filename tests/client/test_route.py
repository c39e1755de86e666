"""The way to a box: addresses, and what goes wrong on the way, in words."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from bento_tor.client.route import BoxAddress, TorTransport, UnixTransport, parse_address
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
            TorTransport(parse_address(ONION), proxy, isolation="x", timeout_s=5).open()
        assert str(proxy) in caught.value.message


def test_no_box_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="no box listens"):
        UnixTransport(parse_address(f"unix:{tmp_path}/none"), timeout_s=5).open()


FIRST = b"what rides along"


def answer_once(listener: socket.socket, reply: bytes, heard: list[bytes]) -> None:
    """A SOCKS server for one connection, which answers the request with `reply`, a byte at a time."""
    peer, _ = listener.accept()
    with peer:
        for answer in (b"\x05\x02", b"\x01\x00"):
            heard.append(peer.recv(4096))
            peer.sendall(answer)
        heard.append(peer.recv(4096))
        with suppress(BrokenPipeError):  # a client that has read why not leaves
            for byte in reply:
                peer.sendall(bytes([byte]))


def ask_fake_socks(tmp_path: Path, reply: bytes) -> tuple[BentoError | None, list[bytes], bytes]:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socks"))
        listener.listen()
        server = threading.Thread(target=answer_once, args=(listener, reply, heard))
        server.start()
        proxy = Endpoint.parse(f"unix:{tmp_path}/socks")
        stream = TorTransport(parse_address(ONION), proxy, isolation="word", timeout_s=5).open()
        try:
            stream.send(FIRST)
            return None, heard, stream.recv(1)
        except BentoError as error:
            return error, heard, b""
        finally:
            stream.close()
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
    error, *_ = ask_fake_socks(tmp_path, bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
    assert isinstance(error, ConnectError) and words in error.message and error.hint and error.exit_code == 6


ANSWER = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def test_the_name_is_resolved_by_tor_and_the_isolation_word_is_not_shown(tmp_path: Path) -> None:
    error, heard, _ = ask_fake_socks(tmp_path, ANSWER)
    assert error is None
    assert heard[0] == b"\x05\x01\x02" and ONION.encode() in heard[2]
    assert b"word" not in heard[1] and not heard[1][2:].startswith(b"<torS0X>")


def test_the_first_words_ride_with_the_request_and_none_of_the_boxs_are_taken_for_tors(tmp_path: Path) -> None:
    error, heard, said = ask_fake_socks(tmp_path, ANSWER + b"B")
    assert error is None
    assert heard[2].startswith(b"\x05\x01\x00\x03") and heard[2].endswith(b"\x00\x50" + FIRST)
    assert said == b"B"


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.0 400 no", ANSWER[:5], b"\x05\x00\x00\x07" + ANSWER[4:]])
def test_what_is_no_answer_of_a_tor_is_said(tmp_path: Path, reply: bytes) -> None:
    error, *_ = ask_fake_socks(tmp_path, reply)
    assert isinstance(error, TorError) and "no tor answers" in error.message


def test_what_tor_leaves_waiting_is_tried_again_sooner_and_by_another_circuit(serve_on_socket) -> None:
    users: list[bytes] = []

    def never(peer: socket.socket) -> None:
        """Greet, take the credentials and the request, and say no more."""
        for answer in (b"\x05\x02", b"\x01\x00"):
            users.append(peer.recv(4096))
            peer.sendall(answer)
        while peer.recv(4096):
            pass

    proxy = Endpoint.parse(f"unix:{serve_on_socket(never)}")
    transport = TorTransport(parse_address(ONION), proxy, isolation="word", timeout_s=1.5)
    waited = []
    for _ in range(3):
        with closing(transport.open()) as stream:
            stream.send(FIRST)
            with pytest.raises(ConnectError) as caught:
                stream.recv(1)
        waited.append(caught.value.message.split(" in ")[1])
    assert waited == ["1.5 seconds", "0.5 seconds", "0.5 seconds"]
    assert len(set(users[1::2])) == 3, "every one by a circuit of its own"
