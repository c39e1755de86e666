"""One client's connection: bytes in, messages to the sessions and the store, answers out.

Every byte from here is hostile. The protocol's rules live in `bento_tor.protocol`; here is what the messages do.
Nothing that a client sends makes the box wait for it for ever: a deadline stands on each phase.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress

from bento_tor.errors import ConfigError, RemoteProtocolError, SandboxError
from bento_tor.policy import document
from bento_tor.policy import manifest as manifests
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.server.desk import Desk
from bento_tor.server.reading import Reading
from bento_tor.server.sessions import Call, Session
from bento_tor.server.store import Saved
from bento_tor.server.tokens import public_id

log = logging.getLogger(__name__)

_HELLO_S = 30.0
# A connection on which nothing is open, and nothing comes.
_IDLE_S = 300.0
# A client that takes nothing for so long, while it is owed bytes, is gone.
_WRITE_S = 300.0
# A client that is being left has so long to take the last words.
_CLOSE_S = 5.0
_READ_BYTES = 64 * 1024

_OPENS_NOTHING = "this token opens nothing here"


class Visit:
    """A client's stay, from its first byte to its last."""

    def __init__(self, desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._desk = desk
        self._reader = reader
        self._writer = writer
        self._connection = Connection(Role.BOX)
        self._uploads: dict[int, tuple[m.Store, bytearray]] = {}
        self._open: dict[int, Reading] = {}
        # What this connection has stored and started: each has its quota.
        self._stored: set[bytes] = set()
        self._started: list[Session] = []
        self._drain = asyncio.Lock()

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol, or stays silent for too long."""
        try:
            await self._serve()
        except RemoteProtocolError as error:
            with suppress(ConnectionError, TimeoutError):
                await self._write(self._connection.refusal(error))
        except (ConnectionError, TimeoutError):
            pass
        finally:
            for reading in list(self._open.values()):
                reading.stop()
            for store, _ in self._uploads.values():
                self._desk.release(store.size)
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
                async with asyncio.timeout(patience_s):
                    data = await self._reader.read(_READ_BYTES)
            except TimeoutError:
                if any(reading.session.maybe_outcome is None for reading in self._open.values()):
                    continue
                raise
            self._connection.receive_data(data)
            while (event := self._connection.next_event()) is not NEED_DATA:
                if isinstance(event, EndOfStream):
                    return
                await self._answer(event)
                patience_s = _IDLE_S

    async def _answer(self, message: m.Message) -> None:
        match message:
            case m.Hello():
                await self._hello(message)
            case m.GetPolicy():
                await self.send(self._desk.policy_message)
            case m.Store():
                await self._begin_upload(message)
            case m.Chunk():
                await self._continue_upload(message)
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

    async def _begin_upload(self, store: m.Store) -> None:
        try:
            reasons = document.misfits(manifests.decode(store.manifest), self._desk.policy)
        except ConfigError as error:
            reasons = [error.message]
        if reasons:
            await self._refuse(store.channel, m.Code.MANIFEST, "; ".join(reasons))
            return
        most = self._desk.policy.functions_per_connection
        if len(self._stored) + len(self._uploads) >= most:
            await self._refuse(store.channel, m.Code.FULL, f"this box keeps {most} functions of one connection")
            return
        if not self._desk.reserve(store.size):
            await self._refuse(store.channel, m.Code.FULL, "this box takes as many uploads at once as it can")
            return
        self._uploads[store.channel] = (store, bytearray())
        await self._finish_upload(store.channel)

    async def _continue_upload(self, chunk: m.Chunk) -> None:
        self._uploads[chunk.channel][1].extend(chunk.data)
        await self._finish_upload(chunk.channel)

    async def _finish_upload(self, channel: int) -> None:
        store, source = self._uploads[channel]
        if len(source) < store.size:
            return
        del self._uploads[channel]
        self._desk.release(store.size)
        if hashlib.sha256(source).digest() != store.digest:
            await self._refuse(channel, m.Code.PROTOCOL, "the code that arrived is not what was announced")
            return
        saved = await self._desk.save(store.invocation, store.shutdown, store.manifest, bytes(source))
        if saved is Saved.DONE:
            function_hash = self._desk.function_hash(store.invocation)
            self._stored.add(function_hash)
            await self.send(m.Stored(channel, public_id(function_hash)))
        elif saved is Saved.FULL:
            await self._refuse(channel, m.Code.FULL, "this box keeps as many functions as it can")
        else:
            await self._refuse(channel, m.Code.TOKEN, _OPENS_NOTHING)

    async def _shutdown(self, shutdown: m.Shutdown) -> None:
        maybe_hash = await self._desk.erase(shutdown.shutdown)
        if maybe_hash is not None:
            self._stored.discard(maybe_hash)
            await self.send(m.Gone(shutdown.channel))
        else:
            await self._refuse(shutdown.channel, m.Code.TOKEN, _OPENS_NOTHING)

    # --- running ----------------------------------------------------------------------------------------------

    async def _execute(self, execute: m.Execute) -> None:
        stored = await self._desk.maybe_load(execute.invocation)
        if stored is None:
            await self._refuse(execute.channel, m.Code.TOKEN, _OPENS_NOTHING)
            return
        manifest = manifests.decode(stored.manifest)
        if reasons := document.misfits(manifest, self._desk.policy):
            await self._refuse(execute.channel, m.Code.MANIFEST, "; ".join(reasons))
            return
        self._started = [session for session in self._started if session.maybe_outcome is None]
        most = self._desk.policy.sessions_per_connection
        if len(self._started) >= most and self._desk.maybe_session(execute.session) is None:
            await self._refuse(execute.channel, m.Code.FULL, f"this box runs {most} functions of one connection")
            return
        call = Call(execute.call, execute.arguments, stored.source, manifest.egress, manifest.hosts)
        try:
            known = await self._desk.start(execute.session, execute.invocation, call, manifest)
        except SandboxError as error:
            log.error("no sandbox: %s", error.message)
            await self._refuse(execute.channel, m.Code.UNAVAILABLE, "this box cannot start functions now")
            return
        if known is None:
            await self._refuse(execute.channel, m.Code.FULL, "this box runs as many functions as it can")
        else:
            if not known and (session := self._desk.maybe_session(execute.session)) is not None:
                self._started.append(session)
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
            await self._refuse(open_.channel, m.Code.TOKEN, _OPENS_NOTHING)
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
        await self._write(self._connection.send_many(messages))

    def abort(self) -> None:
        """Drop the connection now, with whatever the client was still owed."""
        self._writer.transport.abort()

    def leave(self, channel: int) -> None:
        """A reading is over."""
        self._open.pop(channel, None)

    async def _refuse(self, channel: int, code: m.Code, why: str) -> None:
        await self.send(m.Refused(channel, code, why[: m.MAX_TEXT_CHARS]))

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        async with self._drain, asyncio.timeout(_WRITE_S):
            await self._writer.drain()
