"""One connection to a box: a stream, the protocol's state, and a thread that reads. When it breaks it stays broken;
coming back is `line`'s.

Blocking calls for the program above; the thread only takes bytes in and sorts messages by channel. What is received
is acknowledged by whoever consumes it, so a slow program slows the function down and nothing piles up here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from bento_tor.client.transport import Broken, Stream
from bento_tor.errors import (
    BentoError,
    ConnectError,
    LocalProtocolError,
    ProtocolError,
    Refused,
    RemoteProtocolError,
    TorError,
)
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.protocol.states import ChannelState

_READ_BYTES = 256 * 1024
_WRITE_BYTES = 64 * 1024
_OVER = (ChannelState.ENDED, ChannelState.CLOSING, ChannelState.FINISHED)
_UNANSWERED = (
    ChannelState.CALLED,
    ChannelState.PIPELINED,
    ChannelState.STARTED,
    ChannelState.OPENING,
    ChannelState.ATTACHING,
)
# How far what we send may be ahead of what the box has acknowledged, whatever window it gives: until then it is kept,
# to be said again on another connection, and a box must not be able to make us keep all that a user has.
_MOST_AHEAD_UNITS = 4 * 1024 * 1024
CONNECTION = 0  # the "channel" of messages that belong to none
# Pings of our own, where a connection is silent: their Pongs are wanted by nobody.
_ALIVE = 1
# After a failed write the reading thread has so long to find out why: the box may have said it.
_LAST_WORDS_S = 1.0


class Wire:
    """Messages to and from one box. A context manager: leaving it closes the connection."""

    def __init__(
        self, stream: Stream, *, timeout_s: float, on_sent: Callable[[int], None] = lambda count: None
    ) -> None:
        """`on_sent` is told how many bytes have gone, after each write."""
        self.timeout_s = timeout_s
        self._on_sent = on_sent
        self.maybe_error: BentoError | None = None  # why it broke, once it has
        self.opened_at = time.monotonic()
        self._stream = stream
        self._connection = Connection(Role.CLIENT)
        self._state = threading.Condition()
        # Held while bytes go out, so that the state stays free for the reading thread: a box that is busy sending
        # to us is read from even while we wait for it to take our bytes.
        self._writing = threading.Lock()
        self._inboxes: dict[int, deque[m.Message]] = {CONNECTION: deque()}
        self._acked: set[int] = set()  # channels that had an Ack
        self._refusals: dict[int, m.Refused] = {}
        self._waiting = 0  # threads that wait for the box
        self._pinged = False  # and nothing came since
        self._begun = False
        self._channels = 0
        self._reader = threading.Thread(target=self._read, name="bento-wire", daemon=True)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._fail(Broken("the connection was closed", hint=""))
        self._stream.close()
        if self._reader.is_alive():
            self._reader.join(timeout=5.0)

    @property
    def begun(self) -> bool:
        """Something has been sent."""
        return self._begun

    def new_channel(self) -> int:
        """A number never used before on this connection."""
        with self._state:
            self._channels += 1
            self._inboxes[self._channels] = deque()
            return self._channels

    def forget(self, channel: int) -> None:
        """No more messages of this channel are wanted."""
        with self._state:
            self._inboxes.pop(channel, None)
            self._acked.discard(channel)

    def send(self, *messages: m.Message) -> None:
        """Send in one write. Raises ConnectError where the connection has gone."""
        with self._writing:
            with self._state:
                self._check()
                data = self._connection.send_many(messages)
            self._write(data)

    def maybe_send(self, channel: int, *messages: m.Message) -> bool:
        """The same, unless the box has meanwhile ended the channel: then nothing is sent, and it gives False."""
        with self._writing:
            with self._state:
                self._check()
                ended = self._connection.channel_state(channel) in _OVER
                if ended and not all(isinstance(message, m.Ack | m.Close) for message in messages):
                    return False
                if self._connection.channel_state(channel) is ChannelState.FINISHED:
                    return False
                data = self._connection.send_many(messages)
            self._write(data)
            return True

    def next_offset(self, channel: int) -> int:
        """Where our stream on this channel goes on; 0 where the channel has ended."""
        with self._state:
            return 0 if self._connection.channel_state(channel) in _OVER else self._connection.next_offset(channel)

    def is_over(self, channel: int) -> bool:
        """The box takes no more input on this channel."""
        with self._state:
            return self._connection.channel_state(channel) in _OVER

    def acknowledged(self, channel: int) -> int:
        """Units of ours that the box has acknowledged on this channel; 0 where the channel has ended."""
        with self._state:
            ended = self._connection.channel_state(channel) in _OVER
            return 0 if ended else self._connection.acknowledged(channel)

    def received(self, channel: int) -> int:
        """The offset after what has come on this channel; 0 where it is not live any more."""
        with self._state:
            finished = self._connection.channel_state(channel) is ChannelState.FINISHED
            return 0 if finished else self._connection.received(channel)

    def wait_acked(self, channel: int, deadline: float) -> None:
        """Wait until the box has acknowledged something on this channel, or has said anything else on it."""
        with self._state:
            while channel not in self._acked and not self._inboxes[channel]:
                self._check()
                self._pause(deadline)

    def wait(
        self, channel: int, *, deadline: float | None = None, late: Callable[[], ConnectError] | None = None
    ) -> m.Message:
        """The next message of a channel. A Refused for the whole connection is raised here.

        `deadline` is on time.monotonic(); without one it waits for as long as the connection stands. `late`
        makes what is raised after it."""
        with self._state:
            while not (inbox := self._inboxes[channel]):
                self._check()
                self._pause(deadline, late)
            return inbox.popleft()

    def maybe_next(self, channel: int) -> m.Message | None:
        """The next message of a channel if one is here already."""
        with self._state:
            inbox = self._inboxes[channel]
            if not inbox:
                self._check()
            return inbox.popleft() if inbox else None

    def wait_attached(self, channel: int, deadline: float) -> m.Refused | None:
        """Wait until the box has answered our Open; its refusal, if that is the answer."""
        with self._state:
            while self._connection.channel_state(channel) in _UNANSWERED:
                self._check()
                self._pause(deadline)
            return self._refusals.get(channel)

    def maybe_refusal(self, channel: int) -> m.Refused | None:
        """What the box refused on this channel."""
        with self._state:
            return self._refusals.get(channel)

    def wait_window(self, channel: int, least: int = 1, *, deadline: float | None = None) -> int:
        """Wait until `least` units may be sent on this channel; how many may. 0: the channel has ended."""
        with self._state:
            while (window := self._window(channel)) < least:
                self._check()
                if self._connection.channel_state(channel) in _OVER:
                    return 0
                self._pause(deadline)
            return window

    def _window(self, channel: int) -> int:
        """What may be sent by the box's word and by our own; 0 or less: nothing."""
        window = self._connection.send_window(channel)
        if not window:
            return 0
        ahead = self._connection.next_offset(channel) - self._connection.acknowledged(channel)
        return min(window, _MOST_AHEAD_UNITS - ahead)

    def _pause(self, deadline: float | None, late: Callable[[], ConnectError] | None = None) -> None:
        """Wait for a change. Raises ConnectError after the deadline; the connection stands."""
        self._waiting += 1
        try:
            if not self._state.wait(_left(deadline)) and deadline is not None:
                raise (late or _late)()
        finally:
            self._waiting -= 1

    def _write(self, data: bytes) -> None:
        try:
            for part in _parts(data):
                self._stream.send(part)
                self._on_sent(len(part))
        except TimeoutError as why:
            # Part of a message may have gone: nothing can follow it.
            raise self._fail(Broken("the box takes nothing any more", hint="try again, or another box")) from why
        except OSError as why:
            with self._state:
                self._state.wait_for(lambda: self.maybe_error is not None, _LAST_WORDS_S if self._begun else 0)
            raise self._fail(Broken()) from why
        if not self._begun:
            self._begun = True
            self._reader.start()

    def _check(self) -> None:
        if self.maybe_error is not None:
            raise self.maybe_error

    def _read(self) -> None:
        try:
            while True:
                data = self._receive()
                with self._state:
                    self._pinged = False
                    self._connection.receive_data(data)
                    while (event := self._connection.next_event()) is not NEED_DATA:
                        if isinstance(event, EndOfStream):
                            raise Broken("the box closed the connection")
                        self._sort(event)
                    self._state.notify_all()
        except (ProtocolError, ConnectError, TorError) as error:
            self._fail(error)
        except OSError as why:
            self._fail(Broken(f"the connection to the box broke ({why.strerror or why})"))

    def _receive(self) -> bytes:
        """The next bytes. While somebody waits for the box, silence is broken by a Ping; raises Broken where that
        gets no answer either: a circuit may die without a word."""
        while True:
            try:
                return self._stream.recv(_READ_BYTES)
            except TimeoutError:
                with self._state:
                    waited_for = self._waiting > 0
                if not waited_for:
                    continue
                if self._pinged:
                    raise Broken("nothing comes from the box any more") from None
                self._pinged = True
                try:
                    self.send(m.Ping(_ALIVE))
                except LocalProtocolError:
                    raise Broken("the box's first answer stopped half way") from None

    def _sort(self, message: m.Message) -> None:
        channel = getattr(message, "channel", CONNECTION)
        if isinstance(message, m.Refused) and channel == CONNECTION and message.code is not m.Code.POLICY:
            raise RemoteProtocolError(f"the box ended the connection: {_one_line(message.message)}")
        if isinstance(message, m.Refused) and channel in self._inboxes:
            self._refusals[channel] = message
        if isinstance(message, m.Pong) and message.number == _ALIVE:
            return
        # The connection has taken an Ack into account, and nobody else wants it: a box may send any number of them.
        if isinstance(message, m.Ack):
            if channel in self._inboxes:
                self._acked.add(channel)
        elif channel in self._inboxes:
            self._inboxes[channel].append(message)

    def _fail(self, error: BentoError) -> BentoError:
        """It is broken, and the first reason counts."""
        with self._state:
            if self.maybe_error is None:
                self.maybe_error = error
            self._state.notify_all()
            return self.maybe_error


def refused(message: m.Refused) -> Refused:
    """A box's refusal as an error."""
    hints = {
        m.Code.TOKEN: "the function may have been erased, or the token is for another box",
        m.Code.FULL: "try again later, or another box",
        m.Code.MANIFEST: "'bento-tor client policy' shows what this box gives",
        m.Code.DISPLACED: "it goes on there",
        m.Code.OFFSET: "its output was read elsewhere",
        m.Code.UNAVAILABLE: "try again later, or another box",
    }
    return Refused(
        f"the box refused: {_one_line(message.message)}", hint=hints.get(message.code, ""), code=message.code
    )


def _one_line(text: str) -> str:
    """A box's sentence must not look like lines of our own."""
    return " ".join(text.split())


def _parts(data: bytes) -> Iterator[bytes]:
    """One message is one write; of a big upload it can be told how far it is."""
    step = _WRITE_BYTES if len(data) > 2 * _WRITE_BYTES else len(data)
    return (data[at : at + step] for at in range(0, len(data), step))


def _late() -> ConnectError:
    return ConnectError("the box did not answer in time", hint="try again, or give it longer with --timeout")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
