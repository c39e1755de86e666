"""Frames: a 4-byte big-endian length, then so many bytes of msgpack. Owns bytes <-> one message; no order.

A frame's length is judged as soon as its four bytes are there: a claim never makes us keep more than the cap.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bento_tor.errors import LocalProtocolError
from bento_tor.protocol.messages import FromBox, FromClient, Message
from bento_tor.protocol.states import MAX_FRAME_BYTES, Illegal, Role

HEADER_BYTES = 4
# Of the decoder's words about a peer's bytes we pass on no more than this.
_MAX_REASON_CHARS = 200

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Role, msgspec.msgpack.Decoder[Message]] = {
    Role.CLIENT: msgspec.msgpack.Decoder(FromClient),
    Role.BOX: msgspec.msgpack.Decoder(FromBox),
}


class FrameBuffer:
    """Bytes in, bodies of whole frames out. Emptied between appends, it holds one unfinished frame."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def append(self, data: bytes) -> None:
        """Add what arrived."""
        self._bytes += data

    def clear(self) -> None:
        """Give the memory back."""
        self._bytes = bytearray()

    def maybe_body(self, cap_bytes: int) -> bytes | None:
        """Take the body of the next frame; None where it is not all there yet.

        Raises Illegal for a frame of no bytes or of more than `cap_bytes`, before the frame has arrived."""
        if len(self._bytes) < HEADER_BYTES:
            return None
        size = int.from_bytes(self._bytes[:HEADER_BYTES], "big")
        if not 0 < size <= cap_bytes:
            raise Illegal(f"a frame of {size} bytes where 1 to {cap_bytes} are allowed")
        stop = HEADER_BYTES + size
        if len(self._bytes) < stop:
            return None
        body = bytes(memoryview(self._bytes)[HEADER_BYTES:stop])
        # Deleting at the front moves a bytearray's start, not its bytes: many small frames stay cheap.
        del self._bytes[:stop]
        return body


def decode(body: bytes, sender: Role) -> Message:
    """The message in a frame's body. Raises Illegal for whatever `sender` cannot have meant."""
    try:
        return _decoders[sender].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, RecursionError) as why:
        # RecursionError: a body of nested arrays, a bomb for careless decoders.
        reason = str(why)[:_MAX_REASON_CHARS]
        raise Illegal(f"not a message that a {sender.value} can send: {reason}") from why


def encode(message: Message, sender: Role) -> bytes:
    """One frame, header and body together. Raises LocalProtocolError for what the peer would not take."""
    return encode_flight([message], sender)


def encode_flight(messages: Iterable[Message], sender: Role) -> bytes:
    """Many frames as one piece, so that they are one write. Raises LocalProtocolError as `encode`."""
    out = bytearray()
    for message in messages:
        start = len(out)
        _encode_into(out, message)
        size = len(out) - start - HEADER_BYTES
        if size > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"{type(message).__name__} takes {size} bytes, more than a frame may have")
        out[start : start + HEADER_BYTES] = size.to_bytes(HEADER_BYTES, "big")
        _check(bytes(memoryview(out)[start + HEADER_BYTES :]), sender)
    return bytes(out)


def _encode_into(out: bytearray, message: Message) -> None:
    try:
        _encoder.encode_into(message, out, len(out) + HEADER_BYTES)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as why:
        raise LocalProtocolError(f"{type(message).__name__} cannot be written: {why}") from why


def _check(body: bytes, sender: Role) -> None:
    """msgspec checks fields when it reads, not when a value is made: read our own frame as the peer will."""
    try:
        decode(body, sender)
    except Illegal as why:
        raise LocalProtocolError(str(why)) from why
