"""What keeper, box and broker say to each other. Typed, frozen, one message a packet; no socket.

Who may say what is the point: the keeper (which holds tor's control connection) states the rules and hands over
listening sockets; the box (which parses strangers' bytes) only says what a session asked for, and the broker cuts that
to the operator's settings.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from bento_tor.policy.limits import MIB

# A SEQPACKET packet must fit the kernel's socket buffer (208 KiB by default).
MAX_PACKET_BYTES = 128 * 1024

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Positive = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Host = Annotated[str, msgspec.Meta(max_length=253)]
Line = Annotated[str, msgspec.Meta(max_length=200)]
Egress = Literal["none", "exit", "tor"]
Event = Literal["refused", "connections", "names", "bytes"]


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most of one session's traffic.

    connections  open at once
    bytes_out    from the function to the world, over its whole life
    bytes_in     the other way
    idle_s       seconds without a byte either way, after which a connection is closed
    """

    connections: Positive = 32
    bytes_out: Size = 64 * MIB
    bytes_in: Size = 512 * MIB
    idle_s: Positive = 120

    def cut(self, ceiling: Caps) -> Caps:
        """No more than `ceiling` of anything."""
        return Caps(
            connections=min(self.connections, ceiling.connections),
            bytes_out=min(self.bytes_out, ceiling.bytes_out),
            bytes_in=min(self.bytes_in, ceiling.bytes_in),
            idle_s=min(self.idle_s, ceiling.idle_s),
        )


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=True):
    """One packet."""


class Listener(_Message, frozen=True):
    """Keeper: the listening socket of session `number` comes with this packet."""

    number: Number


class Ended(_Message, frozen=True):
    """Keeper: session `number` is over."""

    number: Number


class Rules(_Message, frozen=True):
    """Keeper: what `exit` egress may reach from now on.

    exit_policy  as the relay's tor states it; None: unknown, so nothing is accepted
    operator     the operator's lines (policy/destinations.py has their grammar)
    own          the relay's addresses; those of the host's interfaces the broker finds itself
    number       which statement this is: the answer names it
    """

    exit_policy: str | None
    operator: tuple[Line, ...] = ()
    own: tuple[Host, ...] = ()
    number: Number = 0


class Grant(_Message, frozen=True):
    """Box: what session `number` may do. Without it the session's socket stays dead."""

    number: Number
    egress: Egress
    hosts: Annotated[tuple[Host, ...], msgspec.Meta(max_length=64)] = ()
    caps: Caps = Caps()


class Noted(_Message, frozen=True):
    """Broker to box: `event` happened to session `number`, for the counters and the audit. Never a destination."""

    number: Number
    event: Event


class Carried(_Message, frozen=True):
    """Broker to box: session `number` is over; so many bytes went out, and came in, by that class of egress."""

    number: Number
    egress: Egress
    bytes_out: Size
    bytes_in: Size


class Ruled(_Message, frozen=True):
    """Broker to keeper: the rules of statement `number` hold, for new connections and running ones."""

    number: Number


FromKeeper = Listener | Ended | Rules
FromBroker = Noted | Carried
T = TypeVar("T")

_FROM_KEEPER: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)
_FROM_BOX = msgspec.msgpack.Decoder(Grant)
_FROM_BROKER: msgspec.msgpack.Decoder[FromBroker] = msgspec.msgpack.Decoder(FromBroker)


def encode(message: FromKeeper | Grant | FromBroker | Ruled) -> bytes:
    """One packet."""
    return msgspec.msgpack.encode(message)


def maybe_from_keeper(packet: bytes) -> FromKeeper | None:
    """What the keeper says; None where it is nothing that a keeper says."""
    return _maybe_decode(packet, _FROM_KEEPER)


def maybe_grant(packet: bytes) -> Grant | None:
    """What the box says; None where it is nothing that a box says."""
    return _maybe_decode(packet, _FROM_BOX)


def maybe_from_broker(packet: bytes) -> FromBroker | None:
    """What the broker says to the box; None where it is nothing that a broker says."""
    return _maybe_decode(packet, _FROM_BROKER)


def is_ruled(packet: bytes, number: int) -> bool:
    """Whether the broker tells the keeper that the rules of this statement hold: the one thing that it tells."""
    return packet == encode(Ruled(number))


def _maybe_decode(packet: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    try:
        return decoder.decode(packet)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
