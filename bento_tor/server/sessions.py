"""Sessions: running calls of functions, and what is left of ended ones until their output is read.

A session outlives the connection that started it. Its reader, if there is one, is on some connection; the session
knows only that somebody waits. A function that sends faster than its reader takes is not read from any more: its own
`api.send` blocks, and the box's memory stays bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from bento_tor.egress.grants import Grant
from bento_tor.egress.link import BoxLine
from bento_tor.policy.limits import Limits
from bento_tor.policy.outcome import Kind, Outcome, judge
from bento_tor.protocol.messages import INITIAL_WINDOW, MAX_LOG_BYTES
from bento_tor.resources import read_text
from bento_tor.sandbox import frames
from bento_tor.sandbox.link import KeeperLink, LinkedCell
from bento_tor.server.keeping import Keeping, OutOfOrder
from bento_tor.server.output import Output

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
# After the function's processes are gone its last output is in the socket already; reading it takes this long at most.
_DRAIN_S = 5.0
# What ended sessions may keep in memory, all together, until their readers come; and what each takes beside output.
_ENDED_MAX_BYTES = 64 * 1024 * 1024
_SESSION_COST_BYTES = 16 * 1024

_EGRESS_TEXT = read_text("egress", "inside.py").encode()
_KEEPING_TEXT = read_text("sandbox", "keeping.py").encode()

NoteEnd = Callable[["Session", Outcome], Awaitable[None]]
HostStats = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Call:
    """What a session runs."""

    name: str
    arguments: str
    source: bytes
    egress: Literal["none", "exit", "tor"] = "none"
    hosts: tuple[str, ...] = ()


class Session:
    """One running or ended call. All methods belong to the event loop's thread."""

    def __init__(
        self,
        session_hash: bytes,
        function_hash: bytes,
        *,
        kept_bytes: int,
        host: HostStats,
        output_bytes: int = 1 << 62,
        keeping: Keeping | None = None,
    ) -> None:
        self.session_hash = session_hash
        self.function_hash = function_hash
        self.output = Output()
        self.maybe_outcome: Outcome | None = None
        self.log_tail = b""
        self.input_received = 0  # units taken from clients
        self._input_ended = False
        self._input_written = 0  # units handed to the function
        self._kept_bytes = kept_bytes
        self._output_bytes = output_bytes
        self._maybe_keeping = keeping
        self._host = host
        # Frames that wait for the function, and the units in them. In one piece: a message of one byte costs what it
        # is long, not a hundred times that.
        self._inbox = bytearray()
        self._inbox_units = 0
        self._inbox_filled = asyncio.Event()
        self._bell = asyncio.Event()
        self._ready = False
        self._maybe_word: Outcome | None = None
        self._maybe_displace: Callable[[], None] | None = None
        self._maybe_kill: Callable[[Kind], None] | None = None
        self._maybe_ending: Kind | None = None
        self._over = False  # its processes are gone

    # --- what a connection uses -------------------------------------------------------------------------------

    @property
    def input_limit(self) -> int:
        """How far a client may send input: what the function took, and a window more."""
        return self._input_written + INITIAL_WINDOW

    def attach(self, displaced: Callable[[], None]) -> None:
        """The newest reader wins; the older one is told."""
        previous, self._maybe_displace = self._maybe_displace, displaced
        if previous is not None:
            previous()

    def detach(self, displaced: Callable[[], None]) -> None:
        """The reader goes, unless another one has taken over already. The session goes on."""
        if self._maybe_displace == displaced:
            self._maybe_displace = None

    def put_input(self, offset: int, data: bytes, *, end: bool, eof: bool) -> None:
        """Hand input on, once: a flight that tor brought twice says again what is here already.

        The protocol's window bounds what waits here."""
        known = max(0, self.input_received - offset)
        if known > len(data) + end or (known == len(data) + end and not eof):
            return
        # The last unit, the message's end, is known only where all of it is.
        end = end and known <= len(data)
        data = data[known:]
        if self._input_ended:
            return
        self._input_ended = eof
        units = len(data) + end
        self.input_received += units
        self._hand_over(frames.encode_input(data, end=end, eof=eof), units)

    def skip_input(self, offset: int, length: int) -> None:
        """A client's padding: it takes its place among the units of the input, and goes no further."""
        units = max(0, offset + length - max(self.input_received, offset))
        self.input_received += units
        self._hand_over(b"", units)

    def acknowledge(self, received: int) -> None:
        """The reader has everything before `received`; it is forgotten."""
        self.output.forget(received)
        self.ring()

    def end(self, why: Kind = Kind.KILLED_USER) -> None:
        """Stop the function now, or as soon as it has been started."""
        self._maybe_ending = self._maybe_ending or why
        if self._maybe_kill is not None:
            self._maybe_kill(self._maybe_ending)

    @property
    def bell(self) -> asyncio.Event:
        """Set at the next change of this session. Take it before looking, wait for it after."""
        return self._bell

    def ring(self) -> None:
        """Wake all who wait for a change."""
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    @property
    def cost_bytes(self) -> int:
        """What it takes in memory, about."""
        return self.output.cost_bytes + _SESSION_COST_BYTES

    # --- the function's side ----------------------------------------------------------------------------------

    async def run(self, link: KeeperLink, cell: LinkedCell, call: Call) -> Outcome:
        """Carry bytes between function and readers until it has ended; how it did is told by `finish`."""
        self._maybe_kill = lambda why: link.kill(cell.number, why)
        if self._maybe_ending is not None:
            self._maybe_kill(self._maybe_ending)
        log_pipe = asyncio.create_task(self._read_log(cell.log_fd))
        feeding = asyncio.create_task(self._feed(cell.control, call))
        reading = asyncio.create_task(self._read_frames(cell.control, link, cell.number))
        try:
            seen = await link.ended(cell.number)
            # What the function sent before its end is still to be read, at the reader's pace.
            await self._finish_reading(reading, log_pipe)
        finally:
            for task in (feeding, reading, log_pipe):
                task.cancel()
            await asyncio.gather(feeding, reading, log_pipe, return_exceptions=True)
            cell.control.close()
            if self._maybe_keeping is not None:
                await self._maybe_keeping.stop()
        return judge(self._maybe_word, seen, ready=self._ready)

    def finish(self, outcome: Outcome) -> None:
        """It is over: the reader may be told. Only once it is on disk, or a box killed now would say otherwise."""
        self.maybe_outcome = outcome
        self.ring()

    async def _finish_reading(self, *readings: asyncio.Task[None]) -> None:
        """Read what is left in socket and pipe. The cap is lifted for it: the kernel's buffers bound it."""
        self._kept_bytes = 1 << 62
        self._over = True
        self.ring()
        await asyncio.wait(readings, timeout=_DRAIN_S)

    async def _feed(self, control: socket.socket, call: Call) -> None:
        """Hand code and input to the function, at the pace at which it takes them."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            if self._maybe_keeping is not None:
                await loop.sock_sendall(control, frames.encode_keeping(_KEEPING_TEXT))
            if call.egress != "none":
                await loop.sock_sendall(control, frames.encode_egress(_EGRESS_TEXT))
            await loop.sock_sendall(control, frames.encode_code(call.name, call.arguments, call.source))
            while True:
                await self._inbox_filled.wait()
                self._inbox_filled.clear()
                waiting, units = self._inbox, self._inbox_units
                self._inbox, self._inbox_units = bytearray(), 0
                await loop.sock_sendall(control, waiting)
                self._input_written += units
                self.ring()

    async def _read_frames(self, control: socket.socket, link: KeeperLink, number: int) -> None:
        """Read what the function sends, while there is room for it.

        From the socket itself: a StreamReader throws its buffer away when the peer resets, which a function does
        that ends without having read all its input."""
        loop = asyncio.get_running_loop()
        frames_in = frames.FrameReader()
        with suppress(ConnectionError):
            while not frames_in.done:
                await self._room()
                data = await loop.sock_recv(control, _READ_BYTES)
                if not data:
                    return
                for frame in frames_in.feed(data):
                    await self._take(frame, lambda: link.kill(number, Kind.KILLED_POLICY))
                if self.output.stop > self._output_bytes:
                    link.kill(number, Kind.KILLED_OUTPUT)
                    return
                self.ring()
                # A socket that is never empty would keep the loop for this one function.
                await asyncio.sleep(0)

    def _hand_over(self, frame: bytes, units: int) -> None:
        self._inbox += frame
        self._inbox_units += units
        self._inbox_filled.set()

    async def _room(self) -> None:
        while self.output.cost_bytes >= self._kept_bytes:
            await self._bell.wait()

    async def _take(self, frame: frames.Frame, kill: Callable[[], None]) -> None:
        match frame:
            case frames.Ready():
                self._ready = True
            case frames.Message(data, end):
                self.output.append(data, end=end)
            case frames.Padding(length):
                self.output.append_padding(length)
            case frames.HostRequest():
                await self._tell(frames.encode_host_reply(await self._host()))
            case frames.StoreRequest() | frames.StoreData():
                await self._keep(frame, kill)
            case frames.Returned():
                self._maybe_word = Outcome.returned()
            case frames.Raised(traceback):
                self._maybe_word = Outcome.raised(traceback)
            case frames.Exited(status):
                self._maybe_word = Outcome.exited(status)
            case frames.Illegal(why):
                # The function speaks the driver's protocol wrongly: hostile, or broken beyond use.
                log.info("a function broke the driver's framing: %s", why)
                kill()

    async def _tell(self, frame: bytes) -> None:
        """Answer the function. One that asks on and on without reading the answers waits for itself."""
        while len(self._inbox) >= _READ_BYTES and not self._over:
            await self._bell.wait()
        if not self._over:
            self._hand_over(frame, 0)

    async def _keep(self, frame: frames.StoreRequest | frames.StoreData, kill: Callable[[], None]) -> None:
        """What it wants of its storage. It has asked for some, or it was not told the words."""
        try:
            if self._maybe_keeping is None:
                raise OutOfOrder("it has no storage")
            async for answer in self._maybe_keeping.answer(frame):
                await self._tell(answer)
        except OutOfOrder as why:
            log.info("a function broke the driver's framing: %s", why)
            kill()

    async def _read_log(self, log_fd: int) -> None:
        """Keep the tail of what the function printed."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(log_fd, "rb", buffering=0)
        )
        try:
            while data := await reader.read(_READ_BYTES):
                self.log_tail = (self.log_tail + data)[-MAX_LOG_BYTES:]
        finally:
            transport.close()


class Sessions:
    """All sessions of a box: how many may run, and how long an ended one waits for its reader."""

    def __init__(
        self,
        link: KeeperLink,
        *,
        running_max: int,
        kept_s: float,
        ended_bytes: int = _ENDED_MAX_BYTES,
        maybe_way_out: BoxLine | None = None,
    ) -> None:
        self._maybe_way_out = maybe_way_out
        self._link = link
        self._running_max = running_max
        self._kept_s = kept_s
        self._ended_bytes = ended_bytes
        self._sessions: dict[bytes, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many run now."""
        return sum(session.maybe_outcome is None for session in self._sessions.values())

    @property
    def full(self) -> bool:
        """No more can start."""
        return self.running >= self._running_max

    def maybe_get(self, session_hash: bytes) -> Session | None:
        """The session known by this hash, while it runs or waits for its reader."""
        return self._sessions.get(session_hash)

    def of_function(self, function_hash: bytes) -> list[Session]:
        """Every session of one function."""
        return [session for session in self._sessions.values() if session.function_hash == function_hash]

    async def start(self, session: Session, call: Call, limits: Limits, note_end: NoteEnd, *, image: int = 0) -> None:
        """Start it in a sandbox of its own, of the policy's image with this place.

        Raises SandboxError where that is not possible."""
        self._sessions[session.session_hash] = session
        try:
            cell = await self._link.start(limits, image=image)
        except BaseException:
            del self._sessions[session.session_hash]
            raise
        if self._maybe_way_out is not None:
            # Also for `none`, which closes the door. Where the broker does not take it, nothing gets out.
            self._maybe_way_out.grant(Grant(cell.number, call.egress, call.hosts))
        task = asyncio.create_task(self._run(session, cell, call, note_end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, session_hash: bytes) -> None:
        """Its output has been read, or its function erased."""
        self._sessions.pop(session_hash, None)

    def _make_room(self) -> None:
        """Forget the oldest of the ended ones where all together keep too much for readers that do not come."""
        ended = [session for session in self._sessions.values() if session.maybe_outcome is not None]
        kept_bytes = sum(session.cost_bytes for session in ended)
        for session in ended:
            if kept_bytes <= self._ended_bytes:
                return
            kept_bytes -= session.cost_bytes
            self.forget(session.session_hash)

    async def stop(self) -> None:
        """End everything that runs; used when the box stops."""
        for session in list(self._sessions.values()):
            session.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def _run(self, session: Session, cell: LinkedCell, call: Call, note_end: NoteEnd) -> None:
        try:
            outcome = await session.run(self._link, cell, call)
        except Exception:
            log.exception("a session's machinery broke")
            self._link.kill(cell.number, Kind.KILLED_OPERATOR)
            outcome = Outcome.lost("the box could not carry on with this session")
        try:
            await note_end(session, outcome)
        except Exception:
            log.exception("a session's outcome could not be noted")
        session.finish(outcome)
        self._make_room()
        asyncio.get_running_loop().call_later(self._kept_s, self.forget, session.session_hash)
