"""One connection to a box: a socket, the protocol's state, and a thread that reads.

Blocking calls for the program above; the thread only takes bytes in and sorts messages by channel. What is received
is acknowledged by whoever consumes it, so a slow program slows the function down and nothing piles up here.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress

from bento_tor.errors import BentoError, ConnectError, ProtocolError, Refused, RemoteProtocolError
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.protocol.states import ChannelState

_READ_BYTES = 256 * 1024
_OVER = (ChannelState.ENDED, ChannelState.CLOSING, ChannelState.FINISHED)
_UNANSWERED = (
    ChannelState.CALLED,
    ChannelState.PIPELINED,
    ChannelState.STARTED,
    ChannelState.OPENING,
    ChannelState.ATTACHING,
)
_LATE = ("the box did not answer in time", "try again, or give it longer with --timeout")
CONNECTION = 0  # the "channel" of messages that belong to none


class Wire:
    """Messages to and from one box. A context manager: leaving it closes the connection."""

    def __init__(self, sock: socket.socket, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._sock = sock
        self._connection = Connection(Role.CLIENT)
        self._state = threading.Condition()
        # Held while bytes go out, so that the state stays free for the reading thread: a box that is busy sending
        # to us is read from even while we wait for it to take our bytes.
        self._writing = threading.Lock()
        self._inboxes: dict[int, deque[m.Message]] = {CONNECTION: deque()}
        self._maybe_error: BentoError | None = None
        self._channels = 0
        self._reader = threading.Thread(target=self._read, name="bento-wire", daemon=True)

    def __enter__(self) -> Wire:
        self._sock.settimeout(None)
        # A box that takes nothing must not hold us for ever; reading has no such limit, a function may be silent.
        seconds = max(1, int(self.timeout_s))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, 0))
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._reader.is_alive():
            self._reader.join(timeout=5.0)

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

    def wait(self, channel: int, *, deadline: float | None = None, late: tuple[str, str] = _LATE) -> m.Message:
        """The next message of a channel. A Refused for the whole connection is raised here.

        `deadline` is on time.monotonic(); without one it waits for as long as the connection stands. `late` (a
        sentence, a hint) is what is raised after it."""
        with self._state:
            while not (inbox := self._inboxes[channel]):
                self._check()
                if not self._state.wait(_left(deadline)) and deadline is not None:
                    raise ConnectError(late[0], hint=late[1])
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
                if not self._state.wait(_left(deadline)):
                    raise ConnectError(_LATE[0], hint=_LATE[1])
            return next((message for message in self._inboxes[channel] if isinstance(message, m.Refused)), None)

    def wait_window(self, channel: int) -> int:
        """Wait until something may be sent on this channel; units. 0: the channel has ended."""
        with self._state:
            while not (window := self._connection.send_window(channel)):
                self._check()
                if self._connection.channel_state(channel) in _OVER:
                    return 0
                self._state.wait()
            return window

    def _write(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except BlockingIOError as why:
            error = ConnectError("the box takes nothing any more", hint="try again, or another box")
            self._fail(error)  # part of a message may have gone: nothing can follow it
            raise error from why
        except OSError as why:
            with self._state:
                self._check()
            raise ConnectError("the connection to the box broke", hint="run the command again") from why

    def _check(self) -> None:
        if self._maybe_error is not None:
            raise self._maybe_error

    def _read(self) -> None:
        try:
            while True:
                data = self._sock.recv(_READ_BYTES)
                with self._state:
                    self._connection.receive_data(data)
                    while (event := self._connection.next_event()) is not NEED_DATA:
                        if isinstance(event, EndOfStream):
                            raise ConnectError("the box closed the connection", hint="run the command again")
                        self._sort(event)
                    self._state.notify_all()
        except (ProtocolError, ConnectError) as error:
            self._fail(error)
        except OSError as why:
            self._fail(ConnectError(f"the connection to the box broke ({why.strerror})", hint="run the command again"))

    def _sort(self, message: m.Message) -> None:
        channel = getattr(message, "channel", CONNECTION)
        if isinstance(message, m.Refused) and channel == CONNECTION and message.code is not m.Code.POLICY:
            raise RemoteProtocolError(f"the box ended the connection: {_one_line(message.message)}")
        # The connection has taken an Ack into account, and nobody else wants it: a box may send any number of them.
        if channel in self._inboxes and not isinstance(message, m.Ack):
            self._inboxes[channel].append(message)

    def _fail(self, error: BentoError) -> None:
        with self._state:
            self._maybe_error = error
            self._state.notify_all()


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


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
