"""What box and keeper say to each other: fixed-size requests and replies. Pure; no socket.

The keeper may be root, and reads from a process that parses strangers' bytes: so there is one size each way,
no string towards the keeper, and whatever is not exactly right is None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import KILLS, Kind, Seen

_START, _KILL, _LOOK, _LEAVE = 1, 2, 3, 4
_STARTED, _FAILED, _ENDED, _LOOKED = 1, 2, 3, 4
MAX_TEXT_BYTES = 200
# operation, reason or image, session number, memory, data, wall seconds, pids, CPU percent, open files, CPU seconds,
# inodes
_REQUEST = struct.Struct("!BBQQQIIIIII")
# operation, reason, exit status, length of text, session number, text
_REPLY = struct.Struct(f"!BBBBQ{MAX_TEXT_BYTES}s")
REQUEST_BYTES, REPLY_BYTES = _REQUEST.size, _REPLY.size
_KINDS = (None, *sorted(KILLS))


@dataclass(frozen=True, slots=True)
class Start:
    """Box: start session `number`, of the image with this place in the policy's list."""

    number: int
    limits: Limits
    image: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """Box: end session `number`, for `reason` (one of KILLS)."""

    number: int
    reason: Kind


@dataclass(frozen=True, slots=True)
class Look:
    """Box: the operator has changed what is blocked; read his file again. It carries nothing of what he changed: a box
    that strangers have taken over can make the keeper read, and open nothing."""

    number: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Box: the operator has ordered the end; what the box does next is no fault of its."""


Request = Start | Kill | Look | Leave


@dataclass(frozen=True, slots=True)
class Started:
    """Keeper: it runs. The control socket and the log pipe come with this. `pooled`: it was ready before."""

    number: int
    pooled: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """Keeper: it could not be started."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Keeper: it is over, and everything of it is gone."""

    number: int
    seen: Seen


@dataclass(frozen=True, slots=True)
class Looked:
    """Keeper: what is blocked now holds; or `why` not."""

    number: int
    why: str = ""


Reply = Started | Failed | Ended | Looked


def encode_request(request: Request) -> bytes:
    """The bytes of a request. A limit too large for its field goes as the largest: the keeper clamps it
    anyway."""
    if isinstance(request, Kill):
        return _REQUEST.pack(_KILL, _KINDS.index(request.reason), request.number, *[0] * 8)
    if isinstance(request, Look):
        return _REQUEST.pack(_LOOK, 0, request.number, *[0] * 8)
    if isinstance(request, Leave):
        return _REQUEST.pack(_LEAVE, 0, 0, *[0] * 8)
    limits = request.limits
    long = [min(value, 2**64 - 1) for value in (limits.memory_bytes, limits.data_bytes)]
    short = (limits.wall_s, limits.pids, limits.cpu_percent, limits.open_files, limits.cpu_s, limits.data_inodes)
    return _REQUEST.pack(_START, request.image, request.number, *long, *(min(value, 2**32 - 1) for value in short))


def decode_request(data: bytes) -> Request | None:
    """The request, or None where it is not one."""
    if len(data) != _REQUEST.size:
        return None
    operation, reason, number, memory, disk, wall_s, pids, cpu, files, cpu_s, inodes = _REQUEST.unpack(data)
    if operation == _START:
        return Start(number, Limits(memory, pids, cpu, wall_s, disk, files, cpu_s, inodes), reason)
    if operation == _KILL and 0 < reason < len(_KINDS):
        kind = _KINDS[reason]
        return Kill(number, kind) if kind is not None else None
    if operation == _LOOK:
        return Look(number)
    return Leave() if operation == _LEAVE else None


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply."""
    if isinstance(reply, Started):
        return _REPLY.pack(_STARTED, reply.pooled, 0, 0, reply.number, b"")
    if isinstance(reply, Failed | Looked):
        text = reply.why.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
        operation = _FAILED if isinstance(reply, Failed) else _LOOKED
        return _REPLY.pack(operation, 0, 0, len(text), reply.number, text)
    return _REPLY.pack(_ENDED, _KINDS.index(reply.seen.killed), reply.seen.status, 0, reply.number, b"")


def decode_reply(data: bytes) -> Reply | None:
    """The reply, or None where it is not one."""
    if len(data) != _REPLY.size:
        return None
    operation, reason, status, length, number, text = _REPLY.unpack(data)
    if operation == _STARTED:
        return Started(number, bool(reason))
    if operation in (_FAILED, _LOOKED) and length <= MAX_TEXT_BYTES:
        why = text[:length].decode("utf-8", "replace")
        return Failed(number, why) if operation == _FAILED else Looked(number, why)
    if operation == _ENDED and reason < len(_KINDS):
        return Ended(number, Seen(status, _KINDS[reason]))
    return None
