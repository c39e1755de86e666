"""SOCKS5 (RFC 1928, 1929) as bytes: what a function asks, what is answered, and what we ask of tor. Pure; no socket.

Every byte comes from a function and is hostile: the parser takes them as they come, keeps no more than one request,
and knows one command, CONNECT. Tor's own extended answers pass through.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum

from bento_tor.errors import RemoteProtocolError
from bento_tor.policy.exit_policy import IPAddress

VERSION = 5
NO_AUTH, PASSWORD, NO_METHOD = 0, 2, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}
_AUTH_VERSION = 1


class Reply(IntEnum):
    """The answer to a request. Those from 0x90 on are ours; egress/inside.py has the sentences."""

    OK = 0
    FAILED = 1
    POLICY = 2
    NETWORK = 3
    HOST = 4
    REFUSED = 5
    TIMEOUT = 6
    COMMAND = 7
    ADDRESS = 8
    CONNECTIONS = 0x90
    BYTES = 0x91
    NAMES = 0x92
    UNNAMED = 0x93


@dataclass(frozen=True, slots=True)
class Request:
    """Connect to this. `early`: what was sent behind the request, for the other end."""

    host: str | IPAddress
    port: int
    early: bytes


class Parser:
    """One connection's opening bytes: a greeting, then a request; both may come at once."""

    def __init__(self) -> None:
        self._pending = b""
        self._greeted = False

    def feed(self, data: bytes) -> tuple[bytes, Request | None]:
        """Take some bytes. Gives what is to be answered now, and the request once it is whole.

        Raises RemoteProtocolError for what is no SOCKS5, and Unanswerable for a request that is none of ours."""
        self._pending += data
        answer = b""
        if not self._greeted:
            length = self._greeting_bytes()
            if length is None:
                return b"", None
            answer, self._pending, self._greeted = bytes([VERSION, NO_AUTH]), self._pending[length:], True
        try:
            return answer, self._maybe_request()
        except Unanswerable as why:
            raise Unanswerable(answer + why.answer) from None

    def _greeting_bytes(self) -> int | None:
        text = self._pending
        if text[:1] not in {b"", bytes([VERSION])}:
            raise RemoteProtocolError("not SOCKS5")
        if len(text) < 2 or len(text) < 2 + text[1]:
            return None
        if NO_AUTH not in text[2 : 2 + text[1]]:
            raise Unanswerable(bytes([VERSION, NO_METHOD]))
        return 2 + text[1]

    def _maybe_request(self) -> Request | None:
        text = self._pending
        if text and text[0] != VERSION:
            raise RemoteProtocolError("not SOCKS5")
        if len(text) < 5:
            return None
        if text[1] != _CONNECT:
            raise Unanswerable(reply(Reply.COMMAND))
        kind = text[3]
        if kind not in {_IPV4, _NAME, _IPV6}:
            raise Unanswerable(reply(Reply.ADDRESS))
        start = 5 if kind == _NAME else 4
        end = start + (text[4] if kind == _NAME else _ADDRESS_BYTES[kind])
        if len(text) < end + 2:
            return None
        return Request(_host(kind, text[start:end]), int.from_bytes(text[end : end + 2], "big"), text[end + 2 :])


class Unanswerable(RemoteProtocolError):
    """A request that SOCKS5 has, and we do not. `answer`: the last bytes to send."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("a SOCKS5 request that is not offered")
        self.answer = answer


def reply(code: int) -> bytes:
    """The answer to a request. Where the connection comes from is none of the function's business: all zeros."""
    return bytes([VERSION, code, 0, _IPV4]) + bytes(6)


def password(word: str) -> bytes:
    """Our greeting's second half: a user name and password that keep a session on circuits of its own."""
    text = word.encode("ascii")
    return bytes([_AUTH_VERSION, len(text)]) + text + bytes([len(text)]) + text


def connect(host: str | IPAddress, port: int) -> bytes:
    """Our request to tor. A name has at most 253 ASCII characters by now."""
    if isinstance(host, str):
        text = host.encode("ascii")
        where = bytes([_NAME, len(text)]) + text
    else:
        where = bytes([_IPV4 if host.version == 4 else _IPV6]) + host.packed
    return bytes([VERSION, _CONNECT, 0]) + where + struct.pack("!H", port)


def bound_bytes(head: bytes) -> int:
    """How many bytes follow the first five of an answer. Raises RemoteProtocolError where they are no answer."""
    if len(head) != 5 or head[0] != VERSION or head[3] not in {_IPV4, _NAME, _IPV6}:
        raise RemoteProtocolError("tor does not speak SOCKS5")
    return 2 + (head[4] if head[3] == _NAME else _ADDRESS_BYTES[head[3]] - 1)


def _host(kind: int, text: bytes) -> str | IPAddress:
    if kind == _IPV4:
        return ipaddress.IPv4Address(text)
    if kind == _IPV6:
        return ipaddress.IPv6Address(text)
    try:
        return text.decode("ascii")
    except UnicodeDecodeError:
        raise Unanswerable(reply(Reply.HOST)) from None
