"""SOCKS5, byte by byte and with every byte hostile."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.egress import socks5
from bento_tor.egress.socks5 import Parser, Request, Unanswerable
from bento_tor.errors import RemoteProtocolError

GREETING = b"\x05\x01\x00"
HOSTS = ["web.example.com", "x", "a" * 253, ip_address("192.0.2.1"), ip_address("2001:db8::1")]


def fed(pieces: list[bytes]) -> tuple[bytes, Request | None]:
    parser, answers = Parser(), b""
    for piece in pieces:
        answer, request = parser.feed(piece)
        answers += answer
        if request is not None:
            return answers, request
    return answers, None


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("port", [0, 80, 65535])
def test_a_request_comes_whole_however_it_is_cut(host, port):
    data = GREETING + socks5.connect(host, port)
    assert fed([bytes([byte]) for byte in data]) == (b"\x05\x00", Request(host, port, b""))
    assert fed([data + b"GET /"]) == (b"\x05\x00", Request(host, port, b"GET /"))
    assert fed([data[:-1]]) == (b"\x05\x00", None)


@pytest.mark.parametrize("data", [b"\x04\x01", b"GET / HTTP/1.1", b"\x00", GREETING + b"\x04", GREETING + b"GET /"])
def test_what_is_no_socks5_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        fed([data])


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x00", b"\x05\xff"),
        (GREETING + b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00" + socks5.reply(7)),
        (GREETING + b"\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00" + socks5.reply(7)),
        (GREETING + b"\x05\xf0\x00\x03\x01x\x00\x00", b"\x05\x00" + socks5.reply(7)),
        (GREETING + b"\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50", b"\x05\x00" + socks5.reply(8)),
        (GREETING + b"\x05\x01\x00\x03\x01\xff\x00\x50", b"\x05\x00" + socks5.reply(4)),
    ],
    ids=["only a password", "no method", "bind", "udp", "tor's resolve", "an unknown address", "a name of bytes"],
)
def test_what_is_not_offered_is_answered(data, answer):
    with pytest.raises(Unanswerable) as refused:
        fed([data])
    assert refused.value.answer == answer


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_no_bytes_do_anything_but_ask_or_be_refused(pieces):
    parser = Parser()
    with suppress(RemoteProtocolError):
        for piece in pieces:
            if parser.feed(piece)[1] is not None:
                break


@given(st.binary(max_size=5))
def test_tors_answer_is_read_or_refused(head):
    with suppress(RemoteProtocolError):
        assert 0 <= socks5.bound_bytes(head) <= 257
