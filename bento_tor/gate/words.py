"""What box and gate say to each other. Typed, frozen, one message a packet; no socket.

The keeper's part is egress/grants.py's Listener and Ended. The box, which parses strangers' bytes, can ask in the name
of its sessions for what the operator's policy offers, and for nothing else: there is no verb for it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from bento_tor.egress.grants import Host, Number
from bento_tor.sandbox.frames import TorVerb

MAX_PACKET_BYTES = 128 * 1024
MAX_FACTS_BYTES = MAX_PACKET_BYTES - 1024
TICKET_BYTES = 16

# The routines that a policy and a manifest may name; what is made can be taken down again by who may make it.
ROUTINES = {
    TorVerb.CONNECT: "connect",
    TorVerb.NEW_CIRCUIT: "new_circuit",
    TorVerb.CIRCUITS: "circuits",
    TorVerb.CLOSE_CIRCUIT: "close_circuit",
    TorVerb.PUBLISH: "publish",
    TorVerb.WITHDRAW: "publish",
    TorVerb.NETWORK: "network",
}
NAMES = tuple(dict.fromkeys(ROUTINES.values()))

Word = Literal["policy", "full", "missing", "unavailable"]
Routine = Annotated[str, msgspec.Meta(max_length=64)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Handle = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=True):
    """One packet."""


class Allow(_Message, frozen=True):
    """Box: session `number` may use these routines, towards these hosts (none named: any). Said once for each."""

    number: Number
    routines: Annotated[tuple[Routine, ...], msgspec.Meta(max_length=32)]
    hosts: Annotated[tuple[Host, ...], msgspec.Meta(max_length=64)] = ()


class Ask(_Message, frozen=True):
    """Box: session `number` wants this. `request` numbers the answer."""

    number: Number
    request: Number
    verb: TorVerb
    handle: Handle = 0
    port: Port = 0
    host: Host = ""


class Told(_Message, frozen=True):
    """Gate: the answer, a JSON object for the function."""

    request: Number
    facts: bytes


class Declined(_Message, frozen=True):
    """Gate: the other answer."""

    request: Number
    word: Word
    sentence: Annotated[str, msgspec.Meta(max_length=500)]


T = TypeVar("T")
FromBox = Allow | Ask
FromGate = Told | Declined
_FROM_BOX: msgspec.msgpack.Decoder[FromBox] = msgspec.msgpack.Decoder(FromBox)
_FROM_GATE: msgspec.msgpack.Decoder[FromGate] = msgspec.msgpack.Decoder(FromGate)


def encode(message: FromBox | FromGate) -> bytes:
    """One packet."""
    return msgspec.msgpack.encode(message)


def maybe_from_box(packet: bytes) -> FromBox | None:
    """What the box says; None where it is nothing that a box says."""
    return _maybe_decode(packet, _FROM_BOX)


def maybe_from_gate(packet: bytes) -> FromGate | None:
    """What the gate says; None where it is nothing that a gate says."""
    return _maybe_decode(packet, _FROM_GATE)


def _maybe_decode(packet: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    try:
        return decoder.decode(packet)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
