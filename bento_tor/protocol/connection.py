"""One connection's rules at work: bytes in, messages out; messages in, bytes out.

Owns no socket, clock or thread. Not safe for several threads at once. The rules are those of `states`.

    connection = Connection(Role.BOX)
    connection.receive_data(some_bytes)          # b"" says that the stream is at its end
    while (event := connection.next_event()) is not NEED_DATA:
        ...                                      # a Message, or EndOfStream
    write(connection.send(message))

Empty it with `next_event` before each `receive_data`: then it holds one unfinished frame at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final

from bento_tor.errors import LocalProtocolError, RemoteProtocolError
from bento_tor.protocol import frames
from bento_tor.protocol.channel import Channels, Flow
from bento_tor.protocol.messages import (
    MAX_TEXT_CHARS,
    VERSION,
    Code,
    GetPolicy,
    Hello,
    Message,
    Ping,
    Policy,
    Pong,
    Refused,
    Welcome,
)
from bento_tor.protocol.states import (
    CONNECTION,
    FRAME_CAPS,
    IGNORED,
    MAX_CHANNELS,
    MAX_UNANSWERED,
    Case,
    ChannelState,
    ConnectionState,
    Illegal,
    Key,
    Role,
)

_ANSWERS_DUE = (ConnectionState.GREETED, ConnectionState.STALE)
_AT_AN_END = (ConnectionState.CLOSED, ConnectionState.ERROR)


__all__ = ["NEED_DATA", "Connection", "EndOfStream", "NeedData", "Role"]


class NeedData(Enum):
    """What `next_event` says while no whole message is there."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA


class EndOfStream:
    """Nothing more will come. `cut`: it stopped within a message (a circuit died; no rule is broken)."""

    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut


class Connection:
    """One end of a connection: it judges both sides by the same tables."""

    def __init__(self, role: Role, *, max_channels: int = MAX_CHANNELS) -> None:
        """`max_channels` is part of the protocol: both ends must use the same."""
        self.role = role
        self.state = ConnectionState.NEW
        self._buffer = frames.FrameBuffer()
        self._channels = Channels(max_channels)
        self._ended = False
        self._refused = False
        self._digest: bytes | None = None
        self._policies_due = 0
        self._pings: deque[int] = deque()

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent; b"" is the end of its stream. After an error everything is dropped.

        Raises LocalProtocolError for data after the end."""
        if self._ended and data:
            raise LocalProtocolError("data after the end of the stream")
        self._ended = self._ended or not data
        if self.state not in _AT_AN_END:
            self._buffer.append(data)

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun whose rest is still to come."""
        return len(self._buffer) > 0

    def next_event(self) -> Message | NeedData | EndOfStream:
        """The peer's next message; NEED_DATA where more bytes are needed; EndOfStream when no more will come.

        Raises RemoteProtocolError, once, when the peer breaks a rule: nothing after that is read, and nothing
        but a box's `refusal` can be sent. Raises LocalProtocolError where a box has not answered a Hello."""
        if self.role is Role.BOX and self.state in _ANSWERS_DUE:
            raise LocalProtocolError("the Hello must be answered before the next event")
        try:
            return self._next_event()
        except Illegal as why:
            self._fail()
            raise RemoteProtocolError(
                str(why), hint="the other side may run another version of bento-tor", code=why.code
            ) from why

    def send(self, message: Message) -> bytes:
        """The bytes of `message`, for one write. Raises LocalProtocolError, and nothing has changed."""
        data = frames.encode(message, self.role)
        self._send(message)
        return data

    def send_many(self, messages: Iterable[Message]) -> bytes:
        """The bytes of a whole flight, for one write.

        Raises LocalProtocolError. If that is not for the first message, the connection is then in ERROR: some
        have been counted that will not be written."""
        flight = tuple(messages)
        data = frames.encode_flight(flight, self.role)
        for count, message in enumerate(flight):
            try:
                self._send(message)
            except LocalProtocolError:
                if count:
                    self._fail()
                raise
        return data

    def refusal(self, error: RemoteProtocolError) -> bytes:
        """A box's last words after `error`: one Refused. Raises LocalProtocolError when repeated."""
        if self.role is not Role.BOX or self.state is not ConnectionState.ERROR or self._refused:
            raise LocalProtocolError("a refusal is said once, by a box, after the client's error")
        self._refused = True
        return frames.encode(Refused(0, Code(error.code), error.message[:MAX_TEXT_CHARS]), self.role)

    def fresh_channel(self) -> int:
        """A number for the client's next channel."""
        return self._channels.highest + 1

    def channel_state(self, channel: int) -> ChannelState:
        """Where a channel is. What a message may still be sent on is decided by the tables of `states`."""
        return self._channels.state(channel)

    def next_offset(self, channel: int) -> int:
        """The offset of what we send next on this channel. Raises LocalProtocolError if it is not live."""
        return self._flow(channel, self.role).next

    def acknowledged(self, channel: int) -> int:
        """Units of ours that the peer has acknowledged. Raises LocalProtocolError if it is not live."""
        return self._flow(channel, self.role).acked

    def received(self, channel: int) -> int:
        """Units that came on this channel, for an Ack. Raises LocalProtocolError if it is not live."""
        return self._flow(channel, self.role.peer).offset

    def send_window(self, channel: int) -> int:
        """Units that we may send now; 0 also where the channel, or the connection, takes none at all."""
        maybe_channel = self._channels.maybe_live(channel)
        if maybe_channel is None or self.state in _AT_AN_END:
            return 0
        return maybe_channel.window(self.role)

    def _next_event(self) -> Message | NeedData | EndOfStream:
        while self.state not in _AT_AN_END:
            body = self._buffer.maybe_body(FRAME_CAPS[self.role.peer][self.state])
            if body is None:
                return self._out_of_data()
            message = frames.decode(body, self.role.peer)
            if self._apply(self.role.peer, message):
                return message
        self._buffer.clear()
        return EndOfStream()

    def _fail(self) -> None:
        self.state = ConnectionState.ERROR
        self._buffer.clear()

    def _out_of_data(self) -> NeedData | EndOfStream:
        if not self._ended:
            return NEED_DATA
        cut = len(self._buffer) > 0
        self._buffer.clear()
        self.state = ConnectionState.CLOSED
        return EndOfStream(cut=cut)

    def _send(self, message: Message) -> None:
        try:
            taken = self._apply(self.role, message)
        except Illegal as why:
            raise LocalProtocolError(f"we may not say this now: {why}") from why
        if not taken:
            raise LocalProtocolError(f"{type(message).__name__} comes too late: it would be ignored")

    def _apply(self, sender: Role, message: Message) -> bool:
        """Let `sender` say `message`. False: it is ignored. Raises Illegal, and nothing has changed."""
        channel: int = getattr(message, "channel", 0)
        after = CONNECTION[sender][self.state].get(self._key(message, channel))
        if after is None:
            raise Illegal(f"{type(message).__name__} while the connection is {self.state.name}")
        if after is IGNORED:
            return False
        if channel:
            return self._channels.apply(sender, channel, message)
        self._account(message)
        self.state = after
        return True

    def _key(self, message: Message, channel: int) -> Key:
        if channel:
            return Case.ON_CHANNEL
        match message:
            case Refused(code=Code.POLICY):
                return Case.POLICY_REFUSED
            case Welcome() if message.policy != self._digest:
                return Case.OTHER_DIGEST
            case _:
                return type(message)

    def _account(self, message: Message) -> None:
        """What the tables cannot count: versions, and answers that are due."""
        match message:
            case Hello() | Welcome() if message.version != VERSION:
                raise Illegal(f"protocol version {message.version}; this is {VERSION}", code=Code.VERSION)
            case Hello() if self._policies_due or self._pings:
                raise Illegal("a second Hello before all answers to the first flight")
            case Hello():
                self._digest = message.policy
            case Welcome() if message.policy != self._digest:
                self._policies_due += 1
                self._channels.clear()
            case Ping() if len(self._pings) >= MAX_UNANSWERED:
                raise Illegal(f"more than {MAX_UNANSWERED} Pings without an answer")
            case Ping():
                self._pings.append(message.number)
            case Pong() if not self._pings or self._pings[0] != message.number:
                raise Illegal("a Pong that answers no Ping")
            case Pong():
                self._pings.popleft()
            case GetPolicy() if self._policies_due >= MAX_UNANSWERED:
                raise Illegal(f"more than {MAX_UNANSWERED} GetPolicy without an answer")
            case GetPolicy():
                self._policies_due += 1
            case Policy() if not self._policies_due:
                raise Illegal("a Policy that nobody asked for")
            case Policy():
                self._policies_due -= 1

    def _flow(self, channel: int, sender: Role) -> Flow:
        maybe_channel = self._channels.maybe_live(channel)
        if maybe_channel is None:
            raise LocalProtocolError(f"channel {channel} is not live")
        return maybe_channel.flow_of(sender)
