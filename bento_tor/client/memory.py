"""A box in memory, for the tests of programs that use boxes: no Tor, no sandbox, no files.

It speaks the real protocol with the real client, so resumes, refusals and outcomes are as they will be. Functions
are Python callables that the test hands in; they run in threads, and nothing is held back from them.

    with MemoryBox({"double": lambda api, text: text * 2}) as there, there.connect() as box:
        session = box.run(parse("double", "def double(text): return text * 2"), make_call("double", "ab"))
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from bento_tor.client.box import Box, connect
from bento_tor.client.source import read_arguments
from bento_tor.client.transport import MemoryStream, Stream
from bento_tor.errors import LocalProtocolError, RemoteProtocolError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.outcome import Kind, Outcome
from bento_tor.protocol import NEED_DATA, ChannelState, Connection, EndOfStream, Role
from bento_tor.protocol import messages as m

__all__ = ["ADDRESS", "MemoryBox", "MemoryFunction", "MemorySession", "MemoryStream"]

MemoryFunction = Callable[..., object]
ADDRESS = "unix:memory"
_END = 256  # the unit that ends a message, among bytes


class MemoryBox:
    """A `Transport` to a box made of callables: each is called with an `api`, then with the call's arguments."""

    builds_circuits = False

    def __init__(self, functions: Mapping[str, MemoryFunction], *, policy: Policy | None = None) -> None:
        self.functions = dict(functions)
        self.policy_bytes = document.encode(policy or Policy())
        self.policy_digest = document.digest(self.policy_bytes)
        self.lock = threading.RLock()
        self.stored: dict[bytes, tuple[bytes, bytes]] = {}  # invocation -> shutdown token, digest
        self.sessions: dict[bytes, MemorySession] = {}
        self.parts: dict[bytes, bytearray] = {}
        self._visits: list[_Visit] = []

    def __enter__(self) -> MemoryBox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.hang_up()
        for session in list(self.sessions.values()):
            session.end()
            session.join()

    def open(self) -> Stream:
        """A new connection."""
        ours, theirs = MemoryStream.pair()
        visit = _Visit(self, theirs)
        with self.lock:
            self._visits = [each for each in self._visits if each.is_alive()] + [visit]
        visit.start()
        return ours

    def connect(self, **options: Any) -> Box:
        """`bento_tor.client.connect` to this box, with the same options."""
        return connect(ADDRESS, transport=self, **options)

    def hang_up(self) -> None:
        """Break every connection, as a circuit that fails does. Sessions go on."""
        with self.lock:
            visits, self._visits = self._visits, []
        for visit in visits:
            visit.close()
            visit.join(timeout=5.0)


class MemorySession:
    """A running or ended call."""

    def __init__(self, box: MemoryBox, invocation: bytes, execute: m.Execute) -> None:
        self.invocation = invocation
        self.input_received = 0
        self.maybe_outcome: Outcome | None = None
        self.maybe_reader: tuple[_Visit, int] | None = None
        self.units = array("H")  # all output: bytes, and _END behind each message
        self.log = b""
        self.ended = False  # by a user: the function is told at its next word
        self._box = box
        self._inbox: deque[bytes] = deque()
        self._part = bytearray()
        self._eof = False
        self._filled = threading.Condition(box.lock)
        self._thread = threading.Thread(target=self._run, args=(execute,), name="memory-function", daemon=True)

    def start(self) -> None:
        """Run it."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended, for a while."""
        self._thread.join(timeout=5.0)

    def end(self) -> None:
        """Stop the function, when it next says or hears something."""
        with self._filled:
            self.ended = True
            self._filled.notify_all()

    def put(self, message: m.Input) -> None:
        """Take input, each unit once."""
        known = max(0, self.input_received - message.offset)
        units = len(message.data) + message.end
        if self._eof or known > units or (known == units and not message.eof):
            return
        self.input_received += units - known
        self._part += message.data[known:]
        if message.end and known < units:
            self._inbox.append(bytes(self._part))
            self._part.clear()
        self._eof = message.eof
        self._filled.notify_all()

    # --- the function's side: what `api` is ----------------------------------------------------------------------

    def send(self, data: bytes | str) -> None:
        """Send one message."""
        data = data.encode() if isinstance(data, str) else bytes(data)
        with self._box.lock:
            if self.ended:
                raise _Ended
            self.units.extend(data)
            self.units.append(_END)
            self._push()

    def recv(self) -> bytes:
        """The next message. Raises EOFError where no more will come."""
        with self._filled:
            self._filled.wait_for(lambda: self._inbox or self._eof or self.ended)
            if self.ended:
                raise _Ended
            if not self._inbox:
                raise EOFError("there is no more input")
            return self._inbox.popleft()

    def print(self, text: str) -> None:
        """What a real function's `print` does."""
        self.log = (self.log + text.encode() + b"\n")[-m.MAX_LOG_BYTES :]

    def _run(self, execute: m.Execute) -> None:
        outcome = self._call(execute)
        with self._box.lock:
            self.maybe_outcome = outcome
            self._push()

    def _call(self, execute: m.Execute) -> Outcome:
        try:
            positional, by_name = read_arguments(execute.arguments)
            value = self._box.functions[execute.call](self, *positional, **by_name)
            if value is not None:
                self.send(value if isinstance(value, bytes | str) else repr(value))
        except _Ended:
            return Outcome.killed(Kind.KILLED_USER)
        except Exception:
            return Outcome.raised(traceback.format_exc())
        return Outcome.returned()

    def _push(self) -> None:
        if self.maybe_reader is not None:
            self.maybe_reader[0].push(self.maybe_reader[1], self)


class _Ended(Exception):
    """A user has ended the session."""


class _Visit(threading.Thread):
    """One connection. Everything is done under the box's lock; a `MemoryStream` never makes us wait."""

    def __init__(self, box: MemoryBox, stream: MemoryStream) -> None:
        super().__init__(name="memory-visit", daemon=True)
        self._box = box
        self._stream = stream
        self._connection = Connection(Role.BOX)
        self._uploads: dict[int, tuple[m.Store, bytearray]] = {}
        self._open: dict[int, tuple[MemorySession, int]] = {}  # and the offset that is sent next

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def run(self) -> None:
        """Until the client leaves or breaks the protocol."""
        with suppress(OSError):
            while True:
                try:
                    data = self._stream.recv(m.MAX_DATA_BYTES)
                except TimeoutError:
                    continue
                with self._box.lock:
                    if not self._take(data):
                        break
        with self._box.lock:
            self._leave()
        self._stream.close()

    def push(self, channel: int, session: MemorySession) -> None:
        """Send what the channel's window allows; then perhaps the end."""
        session, offset = self._open[channel]
        while (window := self._connection.send_window(channel)) and offset < len(session.units):
            data, end = _message(session.units, offset, min(window, m.MAX_DATA_BYTES))
            self._say(m.Output(channel, offset, data, end))
            offset += len(data) + end
            self._open[channel] = (session, offset)
        outcome = session.maybe_outcome
        if outcome is not None and offset == len(session.units):
            del self._open[channel]
            session.maybe_reader = None
            self._say(m.Ended(channel, outcome.word, outcome.detail[-m.MAX_TEXT_CHARS :], session.log))

    def _take(self, data: bytes) -> bool:
        self._connection.receive_data(data)
        try:
            while (event := self._connection.next_event()) is not NEED_DATA:
                if isinstance(event, EndOfStream):
                    return False
                self._answer(event)
        except RemoteProtocolError as error:
            with suppress(OSError):
                self._stream.send(self._connection.refusal(error))
            return False
        return True

    def _say(self, *messages: m.Message) -> None:
        # A client that has gone is noticed where we read; one that broke the protocol is told so there.
        with suppress(OSError, LocalProtocolError):
            self._stream.send(self._connection.send_many(messages))

    def _leave(self) -> None:
        for channel in list(self._open):
            self._detach(channel)

    def _detach(self, channel: int) -> None:
        session, _ = self._open.pop(channel, (None, 0))
        if session is not None:
            session.maybe_reader = None

    def _answer(self, message: m.Message) -> None:
        match message:
            case m.Hello():
                self._say(m.Welcome(m.VERSION, self._box.policy_digest))
                if message.policy != self._box.policy_digest:
                    told = m.Policy(self._box.policy_bytes)
                    self._say(m.Refused(0, m.Code.POLICY, "read this box's policy first"), told)
            case m.GetPolicy():
                self._say(m.Policy(self._box.policy_bytes))
            case m.Ping():
                self._say(m.Pong(message.number))
            case m.Store():
                self._begin_upload(message)
            case m.Chunk():
                have = self._uploads[message.channel][1]
                have += message.data[max(0, len(have) - message.offset) :]
                self._maybe_stored(message.channel)
            case m.Shutdown():
                self._shutdown(message)
            case m.Execute():
                self._execute(message)
            case m.Open():
                self._attach(message)
            case m.Close():
                self._detach(message.channel)
                self._say(m.Gone(message.channel))
            case _:
                self._to_session(message)

    def _begin_upload(self, store: m.Store) -> None:
        big = store.size > m.MAX_DATA_BYTES
        # The same for all connections: one that broke may be noticed after the next has come.
        have = self._box.parts.setdefault(_key(store), bytearray()) if big else bytearray()
        self._uploads[store.channel] = (store, have)
        if big:
            self._say(m.Ack(store.channel, len(have), store.size))
        self._maybe_stored(store.channel)

    def _maybe_stored(self, channel: int) -> None:
        store, have = self._uploads[channel]
        if len(have) < store.size:
            return
        del self._uploads[channel]
        self._box.parts.pop(_key(store), None)
        wanted = (store.shutdown, store.digest)
        if hashlib.sha256(have).digest() != store.digest:
            self._say(m.Refused(channel, m.Code.PROTOCOL, "the code that arrived is not what was announced"))
        elif self._box.stored.setdefault(store.invocation, wanted) != wanted:
            self._refuse_token(channel)
        else:
            self._say(m.Stored(channel, hashlib.sha256(store.invocation).hexdigest()[:16]))

    def _shutdown(self, message: m.Shutdown) -> None:
        for invocation, (shutdown, _) in list(self._box.stored.items()):
            if shutdown == message.shutdown:
                del self._box.stored[invocation]
                for session in self._box.sessions.values():
                    if session.invocation == invocation:
                        session.end()
                self._say(m.Gone(message.channel))
                return
        self._refuse_token(message.channel)

    def _execute(self, message: m.Execute) -> None:
        known = message.session in self._box.sessions
        if not known and message.invocation not in self._box.stored:
            self._refuse_token(message.channel)
            return
        if not known:
            session = MemorySession(self._box, message.invocation, message)
            self._box.sessions[message.session] = session
            session.start()
        self._say(m.Started(message.channel, known))

    def _attach(self, message: m.Open) -> None:
        session = self._box.sessions.get(message.session)
        if session is None:
            self._refuse_token(message.channel)
        elif message.offset > len(session.units):
            self._say(m.Refused(message.channel, m.Code.OFFSET, "the output from there on is not kept"))
        else:
            if session.maybe_reader is not None:
                session.maybe_reader[0].displace(session.maybe_reader[1])
            session.maybe_reader = (self, message.channel)
            self._open[message.channel] = (session, message.offset)
            received = session.input_received
            self._say(m.Ack(message.channel, received, received + m.INITIAL_WINDOW))
            self.push(message.channel, session)

    def displace(self, channel: int) -> None:
        """A newer reader has taken over."""
        self._open.pop(channel, None)
        self._say(m.Refused(channel, m.Code.DISPLACED, "another client reads this session now"))

    def _to_session(self, message: m.Message) -> None:
        channel: int = getattr(message, "channel", 0)
        if channel not in self._open:
            return
        session, _ = self._open[channel]
        match message:
            case m.Input():
                session.put(message)
            case m.Padding():
                session.input_received = max(session.input_received, message.offset + len(message.data))
            case m.End():
                session.end()
        self.push(channel, session)
        if isinstance(message, m.Input | m.Padding) and self._connection.channel_state(channel) is ChannelState.OPEN:
            received = session.input_received
            self._say(m.Ack(channel, received, received + m.INITIAL_WINDOW))

    def _refuse_token(self, channel: int) -> None:
        self._say(m.Refused(channel, m.Code.TOKEN, "this token opens nothing here"))


def _key(store: m.Store) -> bytes:
    return store.invocation + store.shutdown + store.digest


def _message(units: array[int], offset: int, most: int) -> tuple[bytes, bool]:
    """The rest of the message at `offset`, at most so many units, and whether its end is among them."""
    try:
        stop = units.index(_END, offset, offset + most)
    except ValueError:
        return bytes(units[offset : offset + most].tolist()), False
    return bytes(units[offset:stop].tolist()), True
