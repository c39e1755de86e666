"""One client's connection: bytes in, messages to the sessions and the store, answers out.

Every byte from here is hostile. The protocol's rules live in `bento_tor.protocol`; here is what the messages do.
Nothing that a client sends makes the box wait for it for ever: a deadline stands on each phase.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from bento_tor.errors import Refused, RemoteProtocolError, SandboxError
from bento_tor.policy import document
from bento_tor.policy import manifest as manifests
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.protocol.states import ChannelState
from bento_tor.server.audit import Kind
from bento_tor.server.desk import Desk
from bento_tor.server.doorway import Guest
from bento_tor.server.reading import Reading
from bento_tor.server.session import Call
from bento_tor.server.uploads import OPENS_NOTHING, Uploads

_HELLO_S = 30.0
# A connection on which nothing is open, and nothing comes.
_IDLE_S = 300.0
# A frame that has begun is whole after so long: the longest then comes at a kilobyte per second.
_FRAME_S = 60.0
# An upload has so long, and more for its size: no circuit that is of use is slower.
_UPLOAD_S = 60.0
_UPLOAD_LEAST_BYTES_PER_S = 1024
# A client that takes nothing for so long, while it is owed bytes, is gone.
_WRITE_S = 300.0
# A client that is being left has so long to take the last words.
_CLOSE_S = 5.0
_READ_BYTES = 64 * 1024
# Bytes that wait for a client to take them: beyond this, who has more to say waits.
_UNSENT_BYTES = 64 * 1024


class Visit:
    """A client's stay, from its first byte to its last."""

    def __init__(
        self, desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, guest: Guest | None = None
    ) -> None:
        self._desk = desk
        self._reader = reader
        self._writer = writer
        self._connection = Connection(Role.BOX)
        self._open: dict[int, Reading] = {}
        # What has been stored and started by this connection, or by all of its circuit: each has its quota.
        self._guest = guest or Guest()
        self._uploads = Uploads(desk, self._guest.stored, self.send, self._refuse)
        # One after another, in the order in which they came: nobody who has much to send holds up the others for longer
        # than one write, and no more than that waits in memory.
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._maybe_frame_began: float | None = None
        self._upload_deadlines: dict[int, float] = {}
        self.sent_bytes = 0  # on this connection, from its first byte
        self._sealed = False  # it ended a padded session, and says nothing more
        writer.transport.set_write_buffer_limits(high=_UNSENT_BYTES)

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol, or stays silent for too long."""
        try:
            await self._serve()
        except RemoteProtocolError as error:
            # Its readings first: they may be waiting for a client that takes nothing.
            for reading in list(self._open.values()):
                reading.stop()
            self._desk.audit.note(Kind.REFUSAL, error.code)
            refusal = self._connection.refusal(error)
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._write(lambda: refusal)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            for reading in list(self._open.values()):
                reading.stop()
            self._uploads.stop()
            self._writer.close()
            try:
                await asyncio.wait_for(self._writer.wait_closed(), _CLOSE_S)
            except (ConnectionError, TimeoutError):
                pass
            finally:
                # Closing waits for a client to take what it is owed; one that never does must not keep it all here.
                self.abort()

    async def _serve(self) -> None:
        patience_s = _HELLO_S
        while True:
            try:
                async with asyncio.timeout_at(self._deadline(patience_s)):
                    data = await self._reader.read(_READ_BYTES)
            except TimeoutError:
                if self._deadline(patience_s) > self._loop.time():
                    continue
                raise
            self._heard_at = self._loop.time()
            self._connection.receive_data(data)
            while (event := self._connection.next_event()) is not NEED_DATA:
                if isinstance(event, EndOfStream):
                    return
                self._maybe_frame_began = None
                await self._answer(event)
                patience_s = _IDLE_S
            self._note_parts()

    @property
    def idle_s(self) -> float:
        """Seconds since anything came; 0 while something is open."""
        return 0.0 if self._open or self._upload_deadlines else self._loop.time() - self._heard_at

    def _deadline(self, patience_s: float) -> float:
        """When the client must have said something: whole, where it has begun. Without it a byte a minute would hold a
        connection, and the memory for what it has begun, for ever."""
        sessions = [reading.session for reading in self._open.values()]
        running = any(session.maybe_outcome is None or session.promise.holds for session in sessions)
        silent = (self._loop.time() if running else self._heard_at) + patience_s
        parts = [*self._upload_deadlines.values()]
        if self._maybe_frame_began is not None:
            parts.append(self._maybe_frame_began + _FRAME_S)
        return min(silent, *parts) if parts else silent

    def _note_parts(self) -> None:
        """Which frame and which uploads have begun, and are not whole."""
        if not self._connection.unfinished:
            self._maybe_frame_began = None
        elif self._maybe_frame_began is None:
            self._maybe_frame_began = self._heard_at
        for channel in list(self._upload_deadlines):
            if self._connection.channel_state(channel) is not ChannelState.UPLOADING:
                del self._upload_deadlines[channel]

    async def _answer(self, message: m.Message) -> None:
        match message:
            case m.Hello():
                await self._hello(message)
            case m.GetPolicy():
                await self.send(self._desk.policy_message)
            case m.Store():
                seconds = _UPLOAD_S + message.size / _UPLOAD_LEAST_BYTES_PER_S
                self._upload_deadlines[message.channel] = self._loop.time() + seconds
                await self._uploads.begin(message)
            case m.Chunk():
                await self._uploads.go_on(message)
            case m.Execute():
                await self._execute(message)
            case m.Open():
                await self._attach(message)
            case m.Shutdown():
                await self._shutdown(message)
            case m.Ping():
                await self.send(m.Pong(message.number))
            case m.Input() | m.Ack() | m.Padding() | m.Close() | m.End():
                await self._to_session(message)
            case _:
                raise RemoteProtocolError(f"no client says {type(message).__name__}")

    async def _hello(self, hello: m.Hello) -> None:
        await self.send(m.Welcome(m.VERSION, self._desk.policy_digest))
        if hello.policy != self._desk.policy_digest:
            await self.send(
                m.Refused(0, m.Code.POLICY, "read this box's policy first"),
                self._desk.policy_message,
            )

    # --- storing ----------------------------------------------------------------------------------------------

    async def _shutdown(self, shutdown: m.Shutdown) -> None:
        maybe_hash = await self._desk.erase(shutdown.shutdown)
        if maybe_hash is not None:
            self._guest.stored.discard(maybe_hash)
        if self._sealed and not self._open:
            # Also an answer of eleven bytes would be more than was promised; that we hang up says the same.
            raise ConnectionAbortedError("a padded session has ended here")
        if maybe_hash is not None:
            await self.send(m.Gone(shutdown.channel))
        else:
            await self._refuse(shutdown.channel, m.Code.TOKEN, OPENS_NOTHING)

    # --- running ----------------------------------------------------------------------------------------------

    async def _execute(self, execute: m.Execute) -> None:
        stored = await self._desk.maybe_load(execute.invocation)
        if stored is None:
            await self._refuse(execute.channel, m.Code.TOKEN, OPENS_NOTHING)
            return
        manifest = manifests.decode(stored.manifest)
        if reasons := document.misfits(manifest, self._desk.policy):
            await self._refuse(execute.channel, m.Code.MANIFEST, "; ".join(reasons))
            return
        most = self._desk.policy.sessions_per_connection
        if self._guest.running() >= most and self._desk.maybe_session(execute.session) is None:
            await self._refuse(execute.channel, m.Code.FULL, f"this box runs {most} functions of one connection")
            return
        arguments = (execute.call, execute.arguments, stored.source)
        call = Call(*arguments, manifest.egress, manifest.hosts, manifest.tor, manifest.box, execute.onward)
        self._guest.starting += 1
        try:
            known = await self._desk.start(execute.session, execute.invocation, call, manifest)
        except Refused as no:
            await self._refuse(execute.channel, m.Code.UNAVAILABLE, no.message)
            return
        except SandboxError:
            await self._refuse(execute.channel, m.Code.UNAVAILABLE, "this box cannot start functions now")
            return
        finally:
            self._guest.starting -= 1
        if known is None:
            await self._refuse(execute.channel, m.Code.FULL, "this box runs as many functions as it can")
        else:
            if not known and (session := self._desk.maybe_session(execute.session)) is not None:
                self._guest.started.append(session)
            await self.send(m.Started(execute.channel, known))

    async def _attach(self, open_: m.Open) -> None:
        session = self._desk.maybe_session(open_.session)
        if session is None:
            await self._tell_end(open_)
        elif not session.output.base <= open_.offset <= session.output.stop:
            await self._refuse(open_.channel, m.Code.OFFSET, "the output from there on is not kept")
        else:
            reading = Reading(self, session, open_.channel, open_.offset)
            self._open[open_.channel] = reading
            reading.start()

    async def _tell_end(self, open_: m.Open) -> None:
        """What became of a session that is not in memory: told to its own token only."""
        word = await self._desk.maybe_word(open_.session)
        if word is None:
            await self._refuse(open_.channel, m.Code.TOKEN, OPENS_NOTHING)
            return
        detail = "the box stopped while the function ran" if word == "lost" else "its output is no longer kept"
        await self.send(m.Ended(open_.channel, word, detail, b""))

    async def _to_session(self, message: m.Input | m.Ack | m.Padding | m.Close | m.End) -> None:
        reading = self._open.get(message.channel)
        match message:
            case m.Close():
                if reading is not None:
                    reading.stop()
                await self.send(m.Gone(message.channel))
            case m.Input() if reading and not reading.displaced:
                reading.session.put_input(message.offset, message.data, end=message.end, eof=message.eof)
            case m.Padding() if reading and not reading.displaced:
                reading.session.skip_input(message.offset, len(message.data))
            # A displaced reader may still be owed bytes: what it acknowledges, the new one has not got.
            case m.Ack() if reading and not reading.displaced:
                if reading.acknowledge(message.received):
                    self._desk.forget(reading.session)
            case m.End() if reading:
                reading.session.end()

    # --- what readings use ------------------------------------------------------------------------------------

    def window(self, channel: int) -> int:
        """Units that may be sent on this channel now."""
        return self._connection.send_window(channel)

    async def send(self, *messages: m.Message) -> None:
        """Send, in one write."""
        for message in messages:
            if isinstance(message, m.Refused):
                self._desk.audit.note(Kind.REFUSAL, message.code)
        await self._write(lambda: self._connection.send_many(messages))

    async def send_in_turn(self, make: Callable[[], Sequence[m.Message]]) -> bool:
        """Wait until all who waited before have sent, then send what `make` gives. False: it gave nothing."""
        return await self._write(lambda: self._connection.send_many(make()))

    def seal(self) -> None:
        """A padded session ends on this connection."""
        self._sealed = True

    def abort(self) -> None:
        """Drop the connection now, with whatever the client was still owed."""
        self._writer.transport.abort()

    def leave(self, channel: int) -> None:
        """A reading is over."""
        self._open.pop(channel, None)

    async def _refuse(self, channel: int, code: m.Code, why: str) -> None:
        await self.send(m.Refused(channel, code, why[: m.MAX_TEXT_CHARS]))

    async def _write(self, make: Callable[[], bytes]) -> bool:
        # What is said is made only now that it is its turn: what waits costs nothing.
        async with self._turn:
            data = make()
            if data:
                self.sent_bytes += len(data)
                self._writer.write(data)
                async with asyncio.timeout(_WRITE_S):
                    await self._writer.drain()
            return bool(data)
