"""Channels: their states, and the offsets and windows of what flows on them. Pure bookkeeping, no bytes kept.

The same code judges what we send and what the peer sends. `Illegal` says why not; then nothing has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bento_tor.protocol.messages import (
    INITIAL_WINDOW,
    MAX_ARGUMENTS_BYTES,
    MAX_DATA_BYTES,
    Ack,
    Chunk,
    Ended,
    Execute,
    Input,
    Message,
    Open,
    Output,
    Padding,
    Store,
)
from bento_tor.protocol.states import CHANNEL, IGNORED, Case, ChannelState, Illegal, Key, Role

# Where the client's Input may begin only at the box's first Ack.
_FIRST_ACK_IN = (ChannelState.OPENING, ChannelState.ATTACHING)
# Where the box's Ack says how much it has of an upload.
_RESUME_ACK_IN = (ChannelState.RESUMING, ChannelState.RESUMED)


def units(message: Message) -> int:
    """How far a message moves its stream: bytes, and one for the end of a message. 0: it is in no stream."""
    match message:
        case Chunk() | Padding():
            return len(message.data)
        case Input() | Output():
            return len(message.data) + message.end
        case Ended():
            return 1
        case _:
            return 0


@dataclass(slots=True)
class Flow:
    """One direction of a stream: the next offset, and how far its sender may go."""

    offset: int = 0
    limit: int = 0
    acked: int = 0
    # Where the box's first Ack told the client to go on, if that is ahead (rule 10).
    skip: int = 0

    @property
    def next(self) -> int:
        """Where its sender goes on."""
        return max(self.offset, self.skip)

    @property
    def window(self) -> int:
        """Units that its sender may send now."""
        return max(0, self.limit - self.next)

    def take(self, offset: int, count: int) -> None:
        """Count `count` units at `offset`. Raises Illegal for a hole, an overlap, or beyond the limit."""
        if offset not in (self.offset, self.next):
            raise Illegal(f"offset {offset} where {self.next} is due")
        if offset + count > self.limit:
            raise Illegal(f"{count} units at offset {offset}, beyond the limit of {self.limit}")
        self.offset = offset + count

    def acknowledge(self, received: int, limit: int) -> None:
        """Let its sender go up to `limit`. Raises Illegal where something shrinks or was never sent."""
        if not self.acked <= received <= self.next:
            raise Illegal(f"an Ack of {received} units, after {self.acked}, where {self.next} were sent")
        self._grant(received, limit)

    def begin(self, received: int, limit: int, *, exactly: bool) -> None:
        """The first Ack after an Open: its sender goes on at `received`; if not `exactly`, only forwards."""
        self._grant(received, limit)
        if exactly:
            self.offset = received
        else:
            self.skip = received

    def _grant(self, received: int, limit: int) -> None:
        if limit < max(self.limit, received):
            raise Illegal(f"an Ack with a limit of {limit}, after {self.limit}, for {received} units received")
        self.acked, self.limit = received, limit


@dataclass(slots=True)
class Channel:
    """One upload, or one call of a session."""

    state: ChannelState = ChannelState.FRESH
    # What the client sends: code, or input. What the box sends: output.
    inward: Flow = field(default_factory=Flow)
    outward: Flow = field(default_factory=Flow)
    size: int = 0
    eof: bool = False

    def apply(self, sender: Role, message: Message) -> bool:
        """Let `sender` say `message`. False: it is ignored. Raises Illegal, and nothing has changed."""
        after = CHANNEL[sender][self.state].get(self._key(message))
        if after is None:
            raise Illegal(f"{type(message).__name__} on a channel that is {self.state.name}")
        if after is IGNORED:
            return False
        self._account(sender, message)
        self.state = after
        return True

    def flow_of(self, sender: Role) -> Flow:
        """The stream that `sender` sends here."""
        return self.inward if sender is Role.CLIENT else self.outward

    def window(self, sender: Role) -> int:
        """Units that `sender` may send now; 0 also in a state where it may send none at all."""
        row = CHANNEL[sender][self.state]
        may_send = any(kind in row and row[kind] is not IGNORED for kind in (Chunk, Input, Output))
        return self.flow_of(sender).window if may_send else 0

    def _key(self, message: Message) -> Key:
        match message:
            case Store(size=0):
                return Case.EMPTY_STORE
            case Store() if message.size > MAX_DATA_BYTES:
                return Case.BIG_STORE
            case Chunk() if message.offset + len(message.data) == self.size:
                return Case.LAST_CHUNK
            case Ack() if self.state is ChannelState.ENDED and message.received == self.outward.next:
                return Case.LAST_ACK
            case _:
                return type(message)

    def _account(self, sender: Role, message: Message) -> None:
        match message:
            case Store():
                self.size = self.inward.limit = message.size
            case Execute():
                # The field's own limit counts characters.
                if len(message.arguments.encode()) > MAX_ARGUMENTS_BYTES:
                    raise Illegal(f"arguments of more than {MAX_ARGUMENTS_BYTES} bytes")
                self.inward.limit = INITIAL_WINDOW
            case Open():
                self.outward = Flow(message.offset, message.offset + INITIAL_WINDOW, message.offset)
            case Chunk() | Input() | Output() | Padding():
                self._move(self.flow_of(sender), message)
            case Ended():
                # It needs no window, or a client that takes nothing could keep a session from ending.
                self.outward.offset += 1
            case Ack() if sender is Role.BOX and self.state in _RESUME_ACK_IN:
                if message.received >= self.size:
                    raise Illegal(f"an Ack of {message.received} bytes of an upload of {self.size} that is not stored")
                if message.limit != self.size:
                    # Else the peer could go on beyond what was announced.
                    raise Illegal(f"an Ack with a limit of {message.limit} for an upload of {self.size} bytes")
                self.inward.begin(message.received, message.limit, exactly=False)
            case Ack() if sender is Role.BOX and self.state in _FIRST_ACK_IN:
                exactly = self.state is ChannelState.ATTACHING
                self.inward.begin(message.received, message.limit, exactly=exactly)
            case Ack():
                self.flow_of(sender.peer).acknowledge(message.received, message.limit)

    def _move(self, flow: Flow, message: Chunk | Input | Output | Padding) -> None:
        count = units(message)
        last = isinstance(message, Input) and message.eof
        if not count and not last:
            raise Illegal(f"{type(message).__name__} with nothing in it")
        if self.eof and isinstance(message, Input):
            raise Illegal("Input after its eof")
        flow.take(message.offset, count)
        self.eof = self.eof or last


class Channels:
    """The live channels of a connection, and the highest number that was used."""

    def __init__(self, max_live: int) -> None:
        self._live: dict[int, Channel] = {}
        self._max_live = max_live
        self.highest = 0

    def clear(self) -> None:
        """Forget all: the box has ignored them."""
        self._live.clear()
        self.highest = 0

    def maybe_live(self, number: int) -> Channel | None:
        """The channel of this number, if something may still happen on it."""
        return self._live.get(number)

    def state(self, number: int) -> ChannelState:
        """Where a channel is."""
        channel = self._live.get(number)
        if channel is not None:
            return channel.state
        return ChannelState.FRESH if number > self.highest else ChannelState.FINISHED

    def apply(self, sender: Role, number: int, message: Message) -> bool:
        """Let `sender` say `message` on channel `number`. False: it is ignored. Raises Illegal."""
        channel = self._live.get(number) or Channel(self.state(number))
        fresh = channel.state is ChannelState.FRESH
        if not channel.apply(sender, message):
            return False
        if fresh and len(self._live) >= self._max_live:
            raise Illegal(f"more than {self._max_live} channels at once")
        if channel.state is ChannelState.FINISHED:
            self._live.pop(number, None)
        else:
            self._live[number] = channel
        self.highest = max(self.highest, number)
        return True
