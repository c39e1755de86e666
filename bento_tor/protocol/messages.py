"""The messages of protocol version 1: frozen values, and nothing else.

On the wire each is a msgpack array whose first item is the message's name. `units` (in `channel`) is the
one rule about offsets: Chunk counts bytes; Input, Output and Padding count bytes, and one more unit for each
end of a message, so that even an empty message has a place in the stream and a resume neither loses nor
doubles it. Ended is one unit.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, dataclass_transform

import msgspec

VERSION = 1
TOKEN_BYTES = 32
DIGEST_BYTES = 32
MAX_CHANNEL = 0xFFFF_FFFF

# Data in one frame. With its header it is one write; bulk is flushed at this size or more.
MAX_DATA_BYTES = 64 * 1024
# Source text of one function, manifest apart.
MAX_CODE_BYTES = 1024 * 1024
MAX_MANIFEST_BYTES = 16 * 1024
MAX_ARGUMENTS_BYTES = 32 * 1024
MAX_POLICY_BYTES = 64 * 1024
MAX_LOG_BYTES = 4 * 1024
MAX_TEXT_CHARS = 2 * 1024
# How far a sender may be ahead before the first Ack, in units, in each direction of a session.
INITIAL_WINDOW = 256 * 1024

Token = Annotated[bytes, msgspec.Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Channel = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHANNEL)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Data = Annotated[bytes, msgspec.Meta(max_length=MAX_DATA_BYTES)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Code(StrEnum):
    """Why a box refuses. Alike for unknown, erased, expired and wrong-role tokens: no oracle."""

    PROTOCOL = "protocol"  # illegal bytes or order; the connection closes
    VERSION = "version"  # no common protocol version; the connection closes
    POLICY = "policy"  # the client has not seen this box's policy: Policy follows, the rest is ignored
    TOKEN = "token"  # the token opens nothing here  # noqa: S105 - a word, not a secret
    MANIFEST = "manifest"  # the function asks for what this box does not give
    FULL = "full"  # a limit of the box is reached; later may work
    DISPLACED = "displaced"  # a newer Open of this session has taken over
    OFFSET = "offset"  # the output from that offset on is no longer kept
    UNAVAILABLE = "unavailable"  # the box cannot do this now (a broken sandbox, stopping)


# The decorator tells type checkers that the messages below are frozen too.
@dataclass_transform(frozen_default=True)
class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True, tag_field="type"):
    """Anything that travels."""


# --- client -> box ------------------------------------------------------------------------------------------


class Hello(Message):
    """First on every connection. `policy` is the digest of the policy that the user accepted, if any."""

    version: int
    policy: Digest | None


class GetPolicy(Message):
    """Ask for the box's policy. Needs no accepted policy."""


class Store(Message):
    """Begin an upload on a fresh channel. `manifest` is a msgpack struct of bento_tor.policy."""

    channel: Channel
    invocation: Token
    shutdown: Token
    manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_MANIFEST_BYTES)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_CODE_BYTES)]
    digest: Digest


class Chunk(Message):
    """The next bytes of an upload."""

    channel: Channel
    offset: Offset
    data: Data


class Execute(Message):
    """Start a session of a stored function on a fresh channel. A known session token starts nothing again.

    `arguments` is one Python literal as source text, a list and a dict: `([5, 12], {'name': 'x'})`; at most
    32 KiB of UTF-8. `onward`: a function asks, by a box that carries it here; what it starts is carried no further."""

    channel: Channel
    invocation: Token
    session: Token
    call: Name
    arguments: Annotated[str, msgspec.Meta(max_length=MAX_ARGUMENTS_BYTES)]
    onward: bool = False


class Open(Message):
    """Attach to a session, on the channel of its Execute or on a fresh one; output from `offset` on."""

    channel: Channel
    session: Token
    offset: Offset


class Input(Message):
    """Bytes for the function. `end`: of a message. `eof`: there will be no more."""

    channel: Channel
    offset: Offset
    data: Data
    end: bool
    eof: bool


class Close(Message):
    """Detach from a session; it goes on."""

    channel: Channel


class End(Message):
    """End the session attached on this channel."""

    channel: Channel


class Shutdown(Message):
    """Erase the function that this shutdown token belongs to, and end its sessions."""

    channel: Channel
    shutdown: Token


class Ping(Message):
    """Answered by a Pong with the same number."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


# --- both ways ----------------------------------------------------------------------------------------------


class Ack(Message):
    """Received up to `received`; the peer may send up to `limit` (both in units of its stream)."""

    channel: Channel
    received: Offset
    limit: Offset


class Padding(Message):
    """Bytes that mean nothing. From the box it takes offsets and window exactly as Output does."""

    channel: Channel
    offset: Offset
    data: Data


# --- box -> client ------------------------------------------------------------------------------------------


class Welcome(Message):
    """Answer to Hello: the box's version and the digest of its policy."""

    version: int
    policy: Digest


class Policy(Message):
    """The box's policy: canonical bytes, whose SHA-256 is the digest.

    `certificate`: a record key (32 bytes), then the signature with which the onion service's identity key says
    that it is the box's. `signature`: the record key's, of the document. Both empty: the policy is unsigned."""

    document: Annotated[bytes, msgspec.Meta(max_length=MAX_POLICY_BYTES)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=96)] = b""
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


class Stored(Message):
    """The upload is on disk; the channel is done. `public_id` names the function to anybody, and opens nothing."""

    channel: Channel
    public_id: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Started(Message):
    """The session runs (`known`: it already did, or has ended); it waits for an Open."""

    channel: Channel
    known: bool


class Output(Message):
    """Bytes from the function. `end`: of a message."""

    channel: Channel
    offset: Offset
    data: Data
    end: bool


class Ended(Message):
    """The session is over and all its output has been sent. It is one unit of that output, needs no window.

    The Ack that includes it makes the channel done: only then does the box know that the client has it all.
    `outcome` is one of bento_tor.policy.outcome's words, `detail` a sentence or a traceback's text, `log`
    the last bytes that the function printed."""

    channel: Channel
    outcome: Name
    detail: Text
    log: Annotated[bytes, msgspec.Meta(max_length=MAX_LOG_BYTES)]


class Gone(Message):
    """Answer to Shutdown (erased) and Close (detached): the channel is done."""

    channel: Channel


class Refused(Message):
    """The box says no: to one channel, or (channel 0) to the connection, which then closes."""

    channel: Annotated[int, msgspec.Meta(ge=0, le=MAX_CHANNEL)]
    code: Code
    message: Text


class Pong(Message):
    """Answer to Ping."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


FromClient = Hello | GetPolicy | Store | Chunk | Execute | Open | Input | Ack | Padding | Close | End | Shutdown | Ping
FromBox = Welcome | Policy | Stored | Started | Output | Ack | Padding | Ended | Gone | Refused | Pong
