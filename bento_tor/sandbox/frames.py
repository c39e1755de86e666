"""The box's side of the driver's framing: bytes of a sandbox in, frozen frames out. Pure; no socket.

A function can write what it likes to its control socket, so everything that comes from there is hostile: each
type has its cap, checked before a byte of the body is kept; the first illegal byte, or the function's last
word, ends the reading for good. The format is described in driver.py, which travels alone and so holds its
own copy of the numbers (a test compares them).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("!BI")
CODE_HEADER = struct.Struct("!HI")

# box -> driver
CODE, INPUT, HOST_REPLY, HOST_REFUSED = 0x01, 0x02, 0x03, 0x04
EGRESS, KEEPING, STORE_REPLY, STORE_REFUSED, STORE_BYTES = 0x06, 0x07, 0x08, 0x09, 0x0A
TOR_GATE, TOR_REPLY, TOR_REFUSED = 0x0B, 0x0C, 0x0D
FAR_BOX = 0x0E
# driver -> box
READY, MESSAGE, PADDING, HOST, RETURNED, RAISED, EXITED = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
STORE, STORE_DATA = 0x88, 0x89
TOR = 0x8A
PAD_TO = 0x8B

END, EOF = 0x01, 0x02  # flags of MESSAGE and INPUT; EOF only on INPUT
MAX_PART_BYTES = 64 * 1024
MAX_TRACEBACK_BYTES = 2 * 1024
MAX_PADDING_BYTES = 1 << 32
MAX_RELEASE_S = 600
UNHELD = (1 << 64) - 1
_PAD_TO = struct.Struct("!QQ")
MAX_BLOB_NAME_BYTES = 256
_STORE_HEADER = struct.Struct("!BqQ")
MAX_HOST_BYTES = 253
_MAX_HANDLE = 1 << 62
_TOR_HEADER = struct.Struct("!BHQ")

# Length of the body: least and most.
_LENGTHS = {
    READY: (0, 0),
    MESSAGE: (1, 1 + MAX_PART_BYTES),
    PADDING: (8, 8),
    PAD_TO: (_PAD_TO.size, _PAD_TO.size),
    HOST: (0, 0),
    RETURNED: (0, 0),
    RAISED: (0, MAX_TRACEBACK_BYTES),
    EXITED: (1, 1),
    STORE: (_STORE_HEADER.size, _STORE_HEADER.size + MAX_BLOB_NAME_BYTES),
    STORE_DATA: (1, MAX_PART_BYTES),
    TOR: (_TOR_HEADER.size, _TOR_HEADER.size + MAX_HOST_BYTES),
}


@dataclass(frozen=True, slots=True)
class Ready:
    """The interpreter is up and waits for code."""


@dataclass(frozen=True, slots=True)
class Message:
    """A part of a message; `end` closes it."""

    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class Padding:
    """The function asks for `length` bytes of padding."""

    length: int


@dataclass(frozen=True, slots=True)
class PadTo:
    """The function wants its reader's connection to end at a multiple of so many bytes; where `maybe_release_s` is
    given, nothing leaves before the session's end, and then at the next multiple of that time."""

    multiple: int
    maybe_release_s: float | None


@dataclass(frozen=True, slots=True)
class HostRequest:
    """The function asks for what it may know about the host; it waits for the answer."""


class Verb(IntEnum):
    """What a function asks of its storage."""

    GET = 1
    PUT = 2
    DELETE = 3
    LIST = 4
    EXPIRE = 5


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """`expect`: the version that must be there, 0 for none, -1 for any. `length`: of the blob that is put,
    or the seconds until everything expires."""

    verb: Verb
    name: str
    expect: int
    length: int


@dataclass(frozen=True, slots=True)
class StoreData:
    """A part of the blob that is put."""

    data: bytes


class TorVerb(IntEnum):
    """What a function asks of tor."""

    CONNECT = 1
    NEW_CIRCUIT = 2
    CIRCUITS = 3
    CLOSE_CIRCUIT = 4
    PUBLISH = 5
    NETWORK = 6
    WITHDRAW = 7


@dataclass(frozen=True, slots=True)
class TorRequest:
    """`handle`: the number of a circuit, a service, or the first relay that is wanted; what has none has 0."""

    verb: TorVerb
    port: int
    handle: int
    host: str


@dataclass(frozen=True, slots=True)
class Returned:
    """Last word: the function returned."""


@dataclass(frozen=True, slots=True)
class Raised:
    """Last word: it raised; `traceback` is its own text."""

    traceback: str


@dataclass(frozen=True, slots=True)
class Exited:
    """Last word: it called sys.exit."""

    status: int


@dataclass(frozen=True, slots=True)
class Illegal:
    """What came is no frame; nothing after it is read."""

    why: str


_BARE: dict[int, Ready | HostRequest | Returned] = {
    READY: Ready(),
    HOST: HostRequest(),
    RETURNED: Returned(),
}
Request = HostRequest | StoreRequest | StoreData | TorRequest
Frame = Ready | Message | Padding | PadTo | Request | Returned | Raised | Exited | Illegal
LAST_WORDS = (Returned, Raised, Exited)


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.done = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes. After an Illegal frame or a last word: none, ever."""
        if self.done:
            return []
        self._buffer += data
        frames: list[Frame] = []
        position = 0
        while not self.done:
            frame, position = self._cut(position)
            if frame is None:
                break
            frames.append(frame)
            self.done = isinstance(frame, (Illegal, *LAST_WORDS))
        if self.done:
            self._buffer.clear()
        else:
            del self._buffer[:position]
        return frames

    def _cut(self, start: int) -> tuple[Frame | None, int]:
        body_start = start + HEADER.size
        if len(self._buffer) < body_start:
            return None, start
        kind, length = HEADER.unpack_from(self._buffer, start)
        least, most = _LENGTHS.get(kind, (1, 0))
        if not least <= length <= most:
            # Checked before the body arrives: a claim of 4 GiB costs us nothing.
            return Illegal(f"frame type {kind:#x} with {length} bytes"), start
        end = body_start + length
        if len(self._buffer) < end:
            return None, start
        return _decode(kind, bytes(memoryview(self._buffer)[body_start:end])), end


def _decode(kind: int, body: bytes) -> Frame:
    if kind == MESSAGE:
        if body[0] & ~END:
            return Illegal(f"message flags {body[0]:#x}")
        return Message(body[1:], bool(body[0] & END))
    if kind == PADDING:
        length = int.from_bytes(body, "big")
        return Padding(length) if length <= MAX_PADDING_BYTES else Illegal(f"padding of {length} bytes")
    if kind == PAD_TO:
        return _decode_pad_to(body)
    if kind == RAISED:
        return Raised(body.decode("utf-8", "replace"))
    if kind == EXITED:
        return Exited(body[0])
    if kind == STORE:
        return _decode_store(body)
    if kind == STORE_DATA:
        return StoreData(body)
    if kind == TOR:
        return _decode_tor(body)
    return _BARE[kind]


def _decode_pad_to(body: bytes) -> PadTo | Illegal:
    multiple, held_ms = _PAD_TO.unpack(body)
    if multiple > MAX_PADDING_BYTES or UNHELD > held_ms > MAX_RELEASE_S * 1000:
        return Illegal(f"padding to {multiple} bytes, held for {held_ms} ms")
    return PadTo(multiple, None if held_ms == UNHELD else held_ms / 1000)


def _decode_store(body: bytes) -> StoreRequest | Illegal:
    verb, expect, length = _STORE_HEADER.unpack_from(body)
    try:
        name = body[_STORE_HEADER.size :].decode()
        request = StoreRequest(Verb(verb), name, expect, length)
    except ValueError:  # a UnicodeDecodeError is one
        return Illegal("a request of storage that is none")
    if (
        expect < -1
        or (length and verb not in (Verb.PUT, Verb.EXPIRE))
        or (verb in (Verb.LIST, Verb.EXPIRE)) == bool(name)
    ):
        return Illegal("a request of storage with what does not belong there")
    return request


def _decode_tor(body: bytes) -> TorRequest | Illegal:
    verb, port, handle = _TOR_HEADER.unpack_from(body)
    try:
        if handle >= _MAX_HANDLE:
            raise ValueError("no number of ours is so high")
        return TorRequest(TorVerb(verb), port, handle, body[_TOR_HEADER.size :].decode("ascii"))
    except ValueError:  # a UnicodeDecodeError is one
        return Illegal("a request to tor that is none")


def encode_code(call: str, arguments: str, source: bytes) -> bytes:
    """Start the function: `call` is the name, `arguments` the literal source of a pair (list, dict)."""
    name, literal = call.encode(), arguments.encode()
    return _encode(CODE, CODE_HEADER.pack(len(name), len(literal)) + name + literal + source)


def encode_egress(source: bytes) -> bytes:
    """Before the code, where the function may connect: the text that makes its connections leave."""
    return _encode(EGRESS, source)


def encode_keeping(source: bytes) -> bytes:
    """Before the code, where the function may keep data: the text of api.store."""
    return _encode(KEEPING, source)


def encode_store_reply(facts: Mapping[str, object]) -> bytes:
    """Answer a StoreRequest, or the last StoreData."""
    return _encode(STORE_REPLY, json.dumps(facts, ensure_ascii=False).encode())


def encode_store_refusal(word: str, sentence: str) -> bytes:
    """Answer with no."""
    return _encode(STORE_REFUSED, f"{word} {sentence}".encode())


def encode_store_bytes(data: bytes) -> bytes:
    """A piece of a blob, after the answer to its get."""
    return _encode(STORE_BYTES, data)


def encode_tor_gate(source: bytes) -> bytes:
    """Before the code, where the function may use Tor routines: the text of api.tor."""
    return _encode(TOR_GATE, source)


def encode_far_box(source: bytes) -> bytes:
    """Before the code, where the function may use other boxes: the text of api.box."""
    return _encode(FAR_BOX, source)


def encode_tor_reply(facts: bytes) -> bytes:
    """Answer a TorRequest, with a JSON object."""
    return _encode(TOR_REPLY, facts)


def encode_tor_refusal(word: str, sentence: str) -> bytes:
    """Answer it with no."""
    return _encode(TOR_REFUSED, f"{word} {sentence}".encode())


def encode_input(data: bytes, *, end: bool, eof: bool = False) -> bytes:
    """A part of a message for the function; `eof`: there will be no more of anything."""
    return _encode(INPUT, bytes([(END if end else 0) | (EOF if eof else 0)]) + data)


def encode_host_reply(facts: Mapping[str, object]) -> bytes:
    """Answer a HostRequest."""
    return _encode(HOST_REPLY, json.dumps(facts, ensure_ascii=False).encode())


def encode_host_refusal(sentence: str) -> bytes:
    """Answer a HostRequest with no: the function sees PermissionError."""
    return _encode(HOST_REFUSED, sentence.encode())


def _encode(kind: int, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body
