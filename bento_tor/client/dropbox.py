"""A drop box at a box: putting something sealed into it, and getting it out, across sessions that end.

The function is functions/dropbox.py. What is put is sealed before, and what comes back is opened as it comes:
everything that a box says here may be a lie, and none is believed. Where the bytes come from and go to is the caller's.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec

from bento_tor import resources
from bento_tor.client.box import Box
from bento_tor.client.sealing import (
    SALT_BYTES,
    SEALED_CHUNK_BYTES,
    WRAPPED_BYTES,
    Chunk,
    NotWhatWasPut,
    Opener,
    derive,
    plain_bytes,
    unwrap,
)
from bento_tor.client.session import Piece, Session
from bento_tor.client.source import Call, Source, make_call, parse
from bento_tor.client.tickets import DropTicket
from bento_tor.errors import BentoError, FunctionFailed, Refused, RemoteProtocolError
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m

MIB = 1024 * 1024
# A piece is in the function's memory twice.
_MOST_PART_BYTES = 16 * MIB
# Beside the pieces: the state, and the last one.
_OTHER_BLOBS = 2
_STATE_BYTES = 64 * 1024
_MAX_REPLY_BYTES = 8 * 1024
# Sessions that end without having brought us any further.
_TRIES = 3

Moved = Callable[[int], None]


class Gone(Refused):
    """The drop box is not there, or gives nothing any more."""


class Sealed(Protocol):
    """What is put: bytes that may be asked for again from any place on."""

    @property
    def size(self) -> int:
        """How many bytes."""

    @property
    def header(self) -> bytes:
        """What is kept beside them, and told to whoever gets them."""

    def pieces(self, start: int) -> Iterator[bytes]:
        """The bytes from `start` on."""


class Sink(Protocol):
    """Where a file goes as it is opened, chunk by chunk."""

    chunks: int  # so many are there already

    def append(self, chunk: Chunk) -> None:
        """The next one."""


@dataclass(frozen=True)
class Limits:
    """When a drop box ends: after so many seconds, or so many gets (0: any number)."""

    expires_s: int = 7 * 86400
    max_gets: int = 1


class Reply(msgspec.Struct, frozen=True):
    """What the function says before, or instead of, bytes."""

    no: str = ""
    why: str = ""
    have: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0
    tail: Annotated[int, msgspec.Meta(ge=0, le=SEALED_CHUNK_BYTES)] = 0
    header: Annotated[str, msgspec.Meta(max_length=2 * (SALT_BYTES + WRAPPED_BYTES), pattern="^([0-9a-f]{2})*$")] = ""
    left: int | None = None


def _function() -> Source:
    """As it ships. Not by its name: a file of that name in the user's folder would be taken instead."""
    return parse("dropbox", resources.read_text("functions", "dropbox.py"))


def shutdown_token(ticket: DropTicket) -> bytes:
    """What erases it. Of the secret, so that a put can go on with the ticket alone: who has the ticket could use up its
    gets too."""
    return derive(ticket.secret, "drop box shutdown")


def put(box: Box, ticket: DropTicket, sealed: Sealed, limits: Limits, *, moved: Moved = lambda count: None) -> None:
    """Make the drop box and fill it; or go on with that, where the same was begun before. `moved` hears how many bytes
    more are there; what has to be said again counts again."""
    policy = box.policy()
    _check_room(policy, sealed.size, limits)
    part = part_bytes(policy, sealed.size)
    with _telling(ticket.box):
        box.upload(_function(), invocation=ticket.token, shutdown=shutdown_token(ticket))
        call = make_call("put", sealed.size, sealed.header, limits.expires_s, limits.max_gets, part)
        done, tries = 0, 0
        while True:
            with _session(box.start(ticket.token, call)) as session:
                have = _fill(session, sealed, moved)
            if have == sealed.size:
                return
            done, tries = max(done, have), 0 if have > done else tries + 1
            if tries == _TRIES:
                raise _failed(session)


def prepare(box: Box, ticket: DropTicket, limits: Limits, *, max_bytes: int) -> None:
    """Make a drop box that somebody else fills, who has its invocation token: he cannot choose its limits."""
    policy = box.policy()
    _check_room(policy, max_bytes, limits)
    with _telling(ticket.box):
        box.upload(_function(), invocation=ticket.token, shutdown=shutdown_token(ticket))
        call = make_call("limit", limits.expires_s, limits.max_gets, max_bytes)
        with _session(box.start(ticket.token, call)) as session:
            if _maybe_reply(session) is None:
                raise _failed(session)
            session.wait()


def part_bytes(policy: Policy, size: int) -> int:
    """In pieces of how many bytes the box keeps it: as small as its number of blobs lets them be."""
    room = max(1, policy.store_blobs - _OTHER_BLOBS)
    return max(MIB, math.ceil(size / room / MIB) * MIB)


def erase(box: Box, ticket: DropTicket) -> None:
    """Erase it before its time. Raises Gone."""
    with _telling(ticket.box):
        box.shutdown(shutdown_token(ticket))


class Getting:
    """One get. It counts once, at `last`, in however many sessions and processes it is done."""

    def __init__(
        self, box: Box, ticket: DropTicket, sink: Sink, *, name: str = "", moved: Moved = lambda count: None
    ) -> None:
        """`name`: that of an earlier process that this one goes on for."""
        self.name = name or secrets.token_hex(16)
        self.size = 0
        self.header = b""
        self.secret = b"" if ticket.to_key else ticket.secret  # that the file is sealed under
        self._box = box
        self._ticket = ticket
        self._sink = sink
        self._moved = moved
        self._tail = 0
        self._opener: Opener

    def body(self) -> None:
        """Everything but the last piece; not counted yet. Raises NotWhatWasPut, Gone."""
        tries = 0
        with _telling(self._ticket.box):
            while True:
                before = self._sink.chunks
                with _session(self._box.start(self._ticket.token, self._call("get"))) as session:
                    if self._read_body(session):
                        return
                tries = 0 if self._sink.chunks > before else tries + 1
                if tries == _TRIES:
                    raise _failed(session)

    def last(self) -> int | None:
        """The last piece: with it the get counts. Gives how many more gets there may be, None for any number."""
        with _telling(self._ticket.box):
            for _ in range(_TRIES):
                with _session(self._box.start(self._ticket.token, make_call("last", self.name))) as session:
                    reply = _maybe_reply(session)
                    tail = b"".join(_bytes(session, self._tail)) if reply is not None else b""
                    if reply is not None and len(tail) == self._tail:
                        self._finish(tail)
                        return reply.left
            raise _failed(session)

    def done(self) -> None:
        """Let the box know that nothing more is needed: after the last get it erases everything now, and not later.
        Where it does not hear it, that is no harm of ours."""
        with suppress(BentoError), _session(self._box.start(self._ticket.token, self._call("done"))) as session:
            session.wait()

    def _call(self, word: str) -> Call:
        start = [self._sink.chunks * SEALED_CHUNK_BYTES] if word == "get" else []
        return make_call(word, self.name, *start)

    def _read_body(self, session: Session) -> bool:
        """False: the session ended before."""
        reply = _maybe_reply(session)
        if reply is None:
            return False
        self._note(reply)
        start = self._sink.chunks * SEALED_CHUNK_BYTES
        wanted = self.size - self._tail - start
        if wanted < 0:
            raise NotWhatWasPut("it is shorter than what came before")
        self._opener = Opener(self.secret, self.header[:SALT_BYTES], first=self._sink.chunks)
        for data in _bytes(session, wanted):
            wanted -= len(data)
            self._take(self._opener.feed(data))
            self._moved(len(data))
        return not wanted

    def _finish(self, tail: bytes) -> None:
        self._take(self._opener.feed(tail))
        self._take([self._opener.finish()])
        self._moved(len(tail))

    def _take(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._sink.append(chunk)

    def _note(self, reply: Reply) -> None:
        """What it says it holds; the same each time."""
        header = bytes.fromhex(reply.header)
        plain_bytes(reply.size)
        if len(header) != SALT_BYTES + WRAPPED_BYTES * self._ticket.to_key or reply.tail != min(
            reply.size, SEALED_CHUNK_BYTES
        ):
            raise NotWhatWasPut("this is no file that was sealed here")
        if self.size and (self.size, self.header) != (reply.size, header):
            raise NotWhatWasPut("it is not what it was before")
        self.size, self.header, self._tail = reply.size, header, reply.tail
        if self._ticket.to_key:
            self.secret = unwrap(self._ticket.secret, header[:SALT_BYTES], header[SALT_BYTES:])


def _fill(session: Session, sealed: Sealed, moved: Moved) -> int:
    """Put what is missing; how much the box said that it has, in the end."""
    reply = _maybe_reply(session)
    if reply is None:
        return 0
    have = min(reply.have, sealed.size)
    moved(have)
    for piece in sealed.pieces(have):
        if not session.send(piece, timeout_s=session.timeout_s):
            break
        moved(len(piece))
    reply = _maybe_reply(session)
    for _ in _bytes(session, 0):
        pass  # there is nothing more to say
    return have if reply is None else reply.have


def _check_room(policy: Policy, size: int, limits: Limits) -> None:
    needed = size + _STATE_BYTES
    if needed > policy.store_bytes:
        what = f"{policy.store_bytes} bytes of one function" if policy.store_bytes else "no data of functions"
        raise Refused(f"this box keeps {what}; the sealed file has {size}", hint="another box may keep more")
    if part_bytes(policy, size) > _MOST_PART_BYTES:
        most = (policy.store_blobs - _OTHER_BLOBS) * _MOST_PART_BYTES
        raise Refused(f"this box keeps {policy.store_blobs} blobs of one function, room for {most} bytes here")
    if limits.expires_s > policy.function_days * 86400:
        raise Refused(f"this box keeps nothing for longer than {policy.function_days} days", hint="a smaller --expires")


@contextmanager
def _session(session: Session) -> Iterator[Session]:
    """A session that is not left running: it would wait for us, and keep a place at the box."""
    try:
        yield session
    finally:
        if session.maybe_outcome is None:
            with suppress(BentoError):
                session.end()


@contextmanager
def _telling(box: str) -> Iterator[None]:
    """The box answers alike whatever the reason is."""
    try:
        yield
    except Refused as error:
        if error.code != m.Code.TOKEN:
            raise
        raise Gone(
            f"there is no such drop box at {box}",
            hint="it has expired, its gets are used up, it was erased, or this ticket was never one",
            code=error.code,
        ) from error


def _maybe_reply(session: Session) -> Reply | None:
    """The function's next word; None where its session ended instead. Raises Refused where it says no."""
    data, until = bytearray(), time.monotonic() + session.timeout_s
    while (piece := _maybe_piece(session, until)) is not None:
        data += piece.data
        if len(data) > _MAX_REPLY_BYTES:
            break
        if piece.end:
            return _read(bytes(data))
    if data:
        raise RemoteProtocolError("what the drop box said is no answer")
    return None


def _maybe_piece(session: Session, until: float) -> Piece | None:
    return session.maybe_piece(timeout_s=max(0.0, until - time.monotonic()))


def _read(data: bytes) -> Reply:
    try:
        reply = msgspec.json.decode(data, type=Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise RemoteProtocolError("what the drop box said is no answer") from why
    if reply.no in ("used", "gone", "empty"):
        raise Gone(f"the drop box gives nothing: {_line(reply.why)}", code=reply.no)
    if reply.no:
        raise Refused(f"the drop box says no: {_line(reply.why)}", code=reply.no)
    return reply


def _bytes(session: Session, count: int) -> Iterator[bytes]:
    """So many bytes, or fewer where the session ends. Raises NotWhatWasPut where there are more, Silent where a chunk
    takes too long: a box that gives a byte now and then must not hold us for ever."""
    until, in_time = time.monotonic() + session.timeout_s, 0
    while (piece := _maybe_piece(session, until)) is not None:
        count -= len(piece.data)
        if count < 0:
            raise NotWhatWasPut("there is more of it than was put")
        in_time += len(piece.data)
        if in_time >= SEALED_CHUNK_BYTES:
            until, in_time = time.monotonic() + session.timeout_s, 0
        if piece.data:
            yield piece.data


def _failed(session: Session) -> BentoError:
    outcome = session.maybe_outcome
    ended = "without an answer" if outcome is None or outcome.succeeded else f"({outcome.word})"
    return FunctionFailed(f"the drop box's function ended {ended}", hint="try again: it goes on where it was")


def _line(text: str) -> str:
    """A sentence of a box's, in one line of ours."""
    return " ".join(text.split())[:200]
