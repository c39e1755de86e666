"""A session: a running call of a function, or what is left of an ended one until its output is read.

A session outlives the connection that started it. Its reader, if there is one, is on some connection; the session
knows only that somebody waits. A function that sends faster than its reader takes is not read from any more: its own
`api.send` blocks, and the box's memory stays bounded. Where nobody reads, output beyond a small size waits on disk.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from bento_tor.policy.outcome import Kind, Outcome, judge
from bento_tor.protocol.messages import INITIAL_WINDOW, MAX_LOG_BYTES
from bento_tor.resources import read_text
from bento_tor.sandbox import frames
from bento_tor.sandbox.link import KeeperLink, LinkedCell
from bento_tor.server.backlog import Backlog
from bento_tor.server.gating import Gating
from bento_tor.server.keeping import Keeping, OutOfOrder
from bento_tor.server.output import Output
from bento_tor.server.padding import Promise
from bento_tor.server.spool import Ref

_READ_BYTES = 64 * 1024
# How much input may be on its way to a function, or wait for it here. A circuit carries no more than one window in a
# round trip: at 0.15 s, 256 KiB are 0.6 of what a raw stream carries (bench/goodput.py).
_INPUT_WINDOW = 4 * INITIAL_WINDOW
# After the function's processes are gone its last output is in the socket already. Reading it takes moments, or longer
# where the machine is held up, for so many turns of so long at most. What the function asked for is waited for one
# turn only, and so is the log's end, which a function can put off.
_DRAIN_S, _DRAINS = 5.0, 6
# What a session takes in memory beside its output, about.
_SESSION_COST_BYTES = 16 * 1024

_EGRESS_TEXT = read_text("egress", "inside.py").encode()
_KEEPING_TEXT = read_text("sandbox", "keeping.py").encode()
_TOR_TEXT = read_text("sandbox", "torgate.py").encode()
_FAR_TEXT = read_text("sandbox", "farbox.py").encode()

HostStats = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Call:
    """What a session runs. `box`: it uses other boxes, unless it was started by a function of one (`onward`)."""

    name: str
    arguments: str
    source: bytes
    egress: Literal["none", "exit", "tor"] = "none"
    hosts: tuple[str, ...] = ()
    tor: tuple[str, ...] = ()
    box: bool = False
    onward: bool = False


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
        self.backlog = Backlog(kept_bytes, self.ring)
        self.output: Output[Ref] = self.backlog.output
        self.maybe_outcome: Outcome | None = None
        self.log_tail = b""
        self.input_received = 0  # units taken from clients
        self._input_ended = False
        self._input_written = 0  # units handed to the function
        self._output_bytes = output_bytes
        self._maybe_keeping = keeping
        self.maybe_gating: Gating | None = None  # set before it runs
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
        self._maybe_newest: Callable[[], None] | None = None  # stays when he has gone
        self._maybe_kill: Callable[[Kind], None] | None = None
        self._maybe_ending: Kind | None = None
        self._over = False  # its processes are gone
        self._answering = False  # what was read is being dealt with
        self.promise = Promise()

    # --- what a connection uses -------------------------------------------------------------------------------

    @property
    def input_limit(self) -> int:
        """How far a client may send input: what the function took, and a window more."""
        return self._input_written + _INPUT_WINDOW

    def attach(self, displaced: Callable[[], None]) -> None:
        """The newest reader wins; the older one is told."""
        previous, self._maybe_displace = self._maybe_displace, displaced
        self._maybe_newest = displaced
        self.backlog.attend(True)
        if previous is not None:
            previous()

    def detach(self, displaced: Callable[[], None]) -> None:
        """The reader goes, unless another one has taken over already. The session goes on."""
        if self._maybe_displace == displaced:
            self._maybe_displace = None
            self.backlog.attend(False)

    def is_newest(self, displaced: Callable[[], None]) -> bool:
        """Whether nobody has attached after the reader of this `displaced`."""
        return self._maybe_newest == displaced

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
    def is_owed(self) -> bool:
        """Whether it has ended, and more than its outcome's word, which is on disk, is still to be told; or it is just
        being told."""
        if self.maybe_outcome is None:
            return False
        unread = self.output.base < self.output.stop or bool(self.log_tail or self.maybe_outcome.kind is Kind.RAISED)
        return unread or self._maybe_displace is not None

    @property
    def cost_bytes(self) -> int:
        """What it takes in memory, about."""
        return self.output.cost_bytes + _SESSION_COST_BYTES

    # --- the function's side ----------------------------------------------------------------------------------

    async def run(self, link: KeeperLink, cell: LinkedCell, call: Call) -> Outcome:
        """Carry bytes between function and readers until it has ended; how it did is told by `finish`."""
        self.promise.started_at = asyncio.get_running_loop().time()
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
        self._let_go()
        self.ring()

    def _let_go(self) -> None:
        """What is held may leave, at its time."""
        loop = asyncio.get_running_loop()
        if (when := self.promise.maybe_let_go(loop.time())) is not None:
            loop.call_at(when, self._leave)

    def _leave(self) -> None:
        self.promise.left = True
        self.ring()

    async def _finish_reading(self, *readings: asyncio.Task[None]) -> None:
        """Read what is left in socket and pipe. The cap is lifted for it: the kernel's buffers bound it."""
        self.backlog.lift()
        self._over = True
        self.ring()
        for _ in range(_DRAINS):
            _, left = await asyncio.wait(readings, timeout=_DRAIN_S)
            if readings[0] not in left or self._answering:
                break

    async def _feed(self, control: socket.socket, call: Call) -> None:
        """Hand code and input to the function, at the pace at which it takes them."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            if self._maybe_keeping is not None:
                await loop.sock_sendall(control, frames.encode_keeping(_KEEPING_TEXT))
            if self.maybe_gating is not None:
                await loop.sock_sendall(control, frames.encode_tor_gate(_TOR_TEXT))
            if call.box:
                await loop.sock_sendall(control, frames.encode_far_box(_FAR_TEXT))
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
                self._answering = True
                for frame in frames_in.feed(data):
                    await self._take(frame, lambda: link.kill(number, Kind.KILLED_POLICY))
                self._answering = False
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
        while True:
            # Taken before the look: a change during it must not be missed.
            bell = self._bell
            if await self.backlog.has_room():
                return
            # More than may be kept: the rest would never come if this did not leave.
            self._let_go()
            await bell.wait()

    async def _take(self, frame: frames.Frame, kill: Callable[[], None]) -> None:
        match frame:
            case frames.Ready():
                self._ready = True
            case frames.Message(data, end):
                self.output.append(data, end=end)
            case frames.Padding(length):
                self.output.append_padding(length)
            case frames.PadTo(multiple, maybe_release_s):
                if multiple > self._output_bytes:
                    kill()  # nobody could tell this padding from a flood
                else:
                    self.promise.make(multiple, maybe_release_s)
            case frames.HostRequest():
                await self._tell(frames.encode_host_reply(await self._host()))
            case frames.StoreRequest() | frames.StoreData():
                await self._keep(frame, kill)
            case frames.TorRequest():
                if self.maybe_gating is None:
                    kill()  # it has no routine, or it was not told the words
                else:
                    await self._tell(await self.maybe_gating.answer(frame))
            case frames.Returned():
                self._maybe_word = Outcome.returned()
            case frames.Raised(traceback):
                self._maybe_word = Outcome.raised(traceback)
            case frames.Exited(status):
                self._maybe_word = Outcome.exited(status)
            case frames.Illegal():
                # The function speaks the driver's protocol wrongly: hostile, or broken beyond use. Not a line in the
                # log, which has times: the audit counts how sessions end.
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
        except OutOfOrder:
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
