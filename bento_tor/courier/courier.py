"""The courier itself: takes sessions' connections, judges where they want to go, forks who carries them, and counts.

It looks at no byte of another box's: it hands its workers one end of a pair, and pumps between the other end and tor.
Fails closed: a session that the keeper has not shown or the box has not allowed gets nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from contextlib import suppress

import msgspec

from bento_tor.courier import words, worker
from bento_tor.courier.errand import Reach
from bento_tor.egress.door import Door, exactly
from bento_tor.egress.grants import Grant
from bento_tor.egress.socks5 import Reply
from bento_tor.egress.ways import Denied, TorWay
from bento_tor.errors import Refused
from bento_tor.policy.destinations import Destinations, is_named

_PLACE_S = 10.0
_ENDING_S, _LOOK_AGAIN_S = 2.0, 0.05
_PIECE_BYTES = 64 * 1024
# Errands at once: of one session, and of the whole box, each a process of some 10 MB.
AT_ONCE, WORKERS_MAX = 4, 24
# Connections of one session beyond its errands that are heard and told so; more of them wait to be accepted.
_HEARD_BEYOND = 4


class Settings(msgspec.Struct, frozen=True):
    """What the operator has set. `socks`: the SOCKS port of the box's tor, a path or host and port; the rest is the
    policy's, for one session."""

    socks: str | tuple[str, int]
    boxes: int
    visits: int
    carried_bytes: int


class Declined(Refused):
    """The answer is no; `word` is what the function's exception is made of."""

    def __init__(self, word: words.Word, sentence: str) -> None:
        super().__init__(sentence)
        self.word: words.Word = word


class Courier:
    """All sessions' errands. Belongs to one event loop, in a process without threads: it forks."""

    def __init__(self, settings: Settings, reach: Reach, filter_: bytes) -> None:
        self._settings = settings
        self._reach = reach
        self._filter = filter_
        self._doors: dict[int, socket.socket] = {}
        self._rounds: dict[int, Round] = {}
        self._workers: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, number: int, door: socket.socket) -> None:
        """Session `number` runs behind this door, which is ours to close. One number has one, ever."""
        if number in self._doors or number in self._rounds:
            door.close()
            return
        self._doors[number] = door

    def allow(self, grant: Grant) -> None:
        """What that session may. A second word changes nothing."""
        door = self._doors.pop(grant.number, None)
        if door is None:
            return
        if grant.egress != "tor":
            door.close()
            return
        self._rounds[grant.number] = Round(door, grant.hosts, self)
        self._rounds[grant.number].start()

    def end(self, number: int) -> None:
        """The session is over: all that it has opened is closed."""
        if (door := self._doors.pop(number, None)) is not None:
            door.close()
        if (round_ := self._rounds.pop(number, None)) is not None:
            task = asyncio.create_task(round_.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End every session."""
        for number in {*self._doors, *self._rounds}:
            self.end(number)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def settings(self) -> Settings:
        """The operator's."""
        return self._settings

    def fork(self, conn: socket.socket, address: str) -> tuple[int, socket.socket]:
        """A worker for this connection: its process id, and our end of its line. Raises Declined."""
        if len(self._workers) >= WORKERS_MAX:
            raise Declined("full", "this box carries as much as it can: try again later")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError as why:
                ours.close()
                raise Declined("full", "this box has no process for it") from why
            if pid == 0:
                worker.be(conn, theirs, address, self._reach, self._filter)
        self._workers.add(pid)
        ours.setblocking(False)
        return pid, ours

    def end_worker(self, pid: int) -> None:
        """Whatever it does."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # not collected yet, so the number is still its own
        os.waitpid(pid, 0)
        self._workers.discard(pid)


class Round:
    """One session's."""

    def __init__(self, door: socket.socket, hosts: tuple[str, ...], courier: Courier) -> None:
        self._door = Door(door, AT_ONCE + _HEARD_BEYOND, self._serve)
        self._hosts = hosts
        self._courier = courier
        # Circuits that no other session's streams share, one for each box that it uses.
        self._way = TorWay(courier.settings.socks, Destinations, word=f"bento-courier-{secrets.token_hex(12)}")
        self._known: set[tuple[str, int]] = set()
        self._begun = self._visits = self._carried = self._errands = 0

    def start(self) -> None:
        """Begin to accept, in the running event loop."""
        self._door.open()

    async def close(self) -> None:
        """Nothing of it is left: no worker, no stream."""
        await self._door.close()

    async def _serve(self, conn: socket.socket) -> None:
        """One errand, from the place where it wants to go to the end of its worker."""
        with conn, suppress(OSError, TimeoutError):
            try:
                text = await _place(conn)
                await self._until_free()
                place = self._judged(text)
                pid, line = self._courier.fork(conn, f"{place[0]}:{place[1]}")
            except Declined as why:
                await asyncio.get_running_loop().sock_sendall(conn, words.refusal(why.word, why.message))
                return
            conn.close()  # else the function would never see its end
            self._errands += 1
            self._begun += 1
            with line:
                streams: list[asyncio.Task[None]] = []
                try:
                    await self._attend(line, place, streams)
                finally:
                    self._errands -= 1
                    self._courier.end_worker(pid)
                    for stream in streams:
                        stream.cancel()

    async def _until_free(self) -> None:
        """The one that a function has just closed, or heard the last word of, takes a moment to end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ENDING_S
        while self._errands >= AT_ONCE and loop.time() < deadline:
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _judged(self, text: bytes) -> tuple[str, int]:
        """Where it may go. Raises Declined."""
        settings = self._courier.settings
        place = words.maybe_place(text)
        if place is None:
            raise Declined("misused", "the address of another box is <56 letters>.onion, or that with a port")
        if not is_named(self._hosts, place[0]):
            raise Declined("policy", "the function's manifest does not name this box under 'hosts'")
        if self._errands >= AT_ONCE:
            raise Declined("full", f"a function has at most {AT_ONCE} connections to other boxes at once: close one")
        if self._visits >= settings.visits:
            raise Declined("full", f"a function makes at most {settings.visits} connections to other boxes")
        # Also what connects to nobody costs a process.
        if self._begun >= settings.visits:
            raise Declined("full", f"a function runs at most {settings.visits} errands to other boxes")
        if self._carried >= settings.carried_bytes:
            raise Declined("full", "the function has sent and received all that it may to and from other boxes")
        if place not in self._known and len(self._known) >= settings.boxes:
            # Each is a circuit at the function's will: see docs/threat-model.md, of a hidden box's guard.
            raise Declined("policy", f"this box lets a function use at most {settings.boxes} other boxes")
        self._known.add(place)
        return place

    async def _attend(self, line: socket.socket, place: tuple[str, int], streams: list[asyncio.Task[None]]) -> None:
        """Give the worker its streams, until it has gone."""
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(line, 16):
            try:
                other = await self._open(place)
            except Denied as why:
                await loop.sock_sendall(line, bytes([why.reply]))
                continue
            near, theirs = socket.socketpair()
            near.setblocking(False)
            streams.append(self._door.begin(self._carry(near, other)))
            with theirs:
                socket.send_fds(line, [bytes([Reply.OK])], [theirs.fileno()])

    async def _open(self, place: tuple[str, int]) -> socket.socket:
        settings = self._courier.settings
        if self._carried >= settings.carried_bytes:
            raise Denied(Reply.BYTES)
        if self._visits >= settings.visits:
            raise Denied(Reply.CONNECTIONS)
        self._visits += 1
        return (await self._way.open(*place)).sock

    async def _carry(self, near: socket.socket, other: socket.socket) -> None:
        with near, other:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(near, other))
                    group.create_task(self._pump(other, near))
            except* OSError:
                pass  # either end has gone, or it was too much

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _PIECE_BYTES):
            self._carried += len(data)
            if self._carried > self._courier.settings.carried_bytes:
                raise ConnectionAbortedError("the session has sent or received all that it may")
            await loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)


async def _place(conn: socket.socket) -> bytes:
    """The first bytes of a connection: a length, and so many letters."""
    async with asyncio.timeout(_PLACE_S):
        length = (await exactly(conn, 1))[0]
        if length > words.MAX_PLACE_BYTES:
            raise Declined("misused", "no address of a box is so long")
        return await exactly(conn, length)
