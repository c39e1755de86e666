"""What a function's side (sandbox/farbox.py, whose docstring describes it) and the courier say to each other. Pure.

Everything that is read here comes from a function and is hostile.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from bento_tor.errors import RemoteProtocolError

HEADER = struct.Struct("!BI")
# function -> courier
RUN, ATTACH, SHUTDOWN, INPUT, STOP = 0x01, 0x02, 0x03, 0x04, 0x05
# courier -> function
STARTED, MESSAGE, ENDED, DONE, REFUSED = 0x81, 0x82, 0x83, 0x84, 0x85
END, EOF = 0x01, 0x02
TOKEN_BYTES = 32
MAX_PART_BYTES = 64 * 1024
MAX_PLACE_BYTES = 80
_MAX_NAME_BYTES = 256
_MAX_ARGUMENTS_BYTES = 32 * 1024
_MAX_OFFSET = 1 << 62
# Length of the body: least and most.
_LENGTHS = {
    RUN: (TOKEN_BYTES + 2, TOKEN_BYTES + 2 + _MAX_NAME_BYTES + _MAX_ARGUMENTS_BYTES),
    ATTACH: (TOKEN_BYTES + 8, TOKEN_BYTES + 8),
    SHUTDOWN: (TOKEN_BYTES, TOKEN_BYTES),
    INPUT: (1, 1 + MAX_PART_BYTES),
    STOP: (0, 0),
}
_PLACE = re.compile(r"([a-z2-7]{56}\.onion):([1-9][0-9]{0,4})")

Word = Literal["policy", "full", "refused", "unreachable", "misused"]


@dataclass(frozen=True, slots=True)
class Run:
    """Start a session of a function that is stored there."""

    token: bytes
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Come back to a session."""

    token: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Erase a function."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Input:
    """A part of a message for the session; `end` closes it, `eof`: there will be no more."""

    data: bytes
    end: bool
    eof: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """End the session."""


Order = Run | Attach | Shutdown | Input | Stop


def maybe_place(text: bytes) -> tuple[str, int] | None:
    """The onion address and port of a box; None where it is none. Nothing else can be reached by this way."""
    found = _PLACE.fullmatch(text.decode("ascii", "replace"))
    if found is None or int(found[2]) > 65535:
        return None
    return found[1], int(found[2])


def body_bytes(kind: int, length: int) -> int:
    """`length`, where a body of that kind may have it. Raises RemoteProtocolError."""
    least, most = _LENGTHS.get(kind, (1, 0))
    if not least <= length <= most:
        raise RemoteProtocolError(f"an order of type {kind:#x} with {length} bytes")
    return length


def decode(kind: int, body: bytes) -> Order:
    """An order. Raises RemoteProtocolError."""
    token = body[:TOKEN_BYTES]
    if kind == RUN:
        return _decode_run(token, body[TOKEN_BYTES:])
    if kind == ATTACH:
        offset = int.from_bytes(body[TOKEN_BYTES:], "big")
        if offset >= _MAX_OFFSET:
            raise RemoteProtocolError("no output is so long")
        return Attach(token, offset)
    if kind == SHUTDOWN:
        return Shutdown(token)
    if kind == INPUT:
        if body[0] & ~(END | EOF):
            raise RemoteProtocolError(f"input flags {body[0]:#x}")
        return Input(body[1:], bool(body[0] & END), bool(body[0] & EOF))
    return Stop()


def _decode_run(token: bytes, rest: bytes) -> Run:
    length = int.from_bytes(rest[:2], "big")
    try:
        name, arguments = rest[2 : 2 + length].decode(), rest[2 + length :].decode()
    except UnicodeDecodeError as why:
        raise RemoteProtocolError("a call that is no text") from why
    if len(rest) < 2 + length or not 0 < length <= _MAX_NAME_BYTES or len(rest) - length > _MAX_ARGUMENTS_BYTES:
        raise RemoteProtocolError("a call that is none")
    return Run(token, name, arguments)


def refusal(word: Word, sentence: str) -> bytes:
    """The frame that ends an errand with no."""
    return frame(REFUSED, f"{word} {sentence}".encode("utf-8", "replace")[:2000])


def frame(kind: int, body: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(kind, len(body)) + body
