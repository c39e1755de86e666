"""Who may say what when. This file owns the tables; `connection` looks them up, and nothing else decides.

The rules:

1. Both sides run the same tables over what is sent and what is received. A message whose state has no
   entry for it is illegal: the box answers with one Refused on channel 0 and closes; a client just closes.
2. The client speaks first: Hello. It need not wait for the answer, its whole flight may follow at once.
   The box reads nothing more before it has answered.
3. A Welcome with the digest that Hello carried makes the connection READY. With another one (or where
   Hello carried none) the box goes on with Refused (channel 0, policy) and Policy, and the connection is
   UNSEEN: the box ignores everything but Hello, GetPolicy and Ping, and what it ignores uses up no channel
   number. So nothing runs under terms that the user has not seen. The client forgets its channels, waits
   for each Policy and Pong it is owed, and may then say Hello again, with the digest it accepts, and its
   flight from the start.
4. Any other Refused on channel 0 closes the connection.
5. GetPolicy is answered by Policy and Ping by Pong, in the order asked; at most MAX_UNANSWERED of each may
   wait.
6. The client numbers channels from 1 upwards: each new one is higher than all before, and none is used
   twice. At most MAX_CHANNELS are live. A number that is not higher than the highest, and not live, is
   FINISHED; no more is kept of it.
7. What the peer sent before it could know that a channel had finished or was being closed is IGNORED, in
   those states and for those messages that the tables name. Who does know may not send it.
8. Chunk counts bytes. Input, Output and Padding count units: bytes, and one for each end of a message.
   Ended is one unit of the output. Offsets have no holes: each begins where the last one stopped. Chunk
   and Padding carry a byte at least, Input and Output a unit at least (or Input its eof, which is the last
   Input on its channel).
9. Nobody sends beyond the limit he was given: INITIAL_WINDOW beyond the first offset, then the `limit` of
   the peer's newest Ack. Ended alone needs no window. `received` and `limit` never shrink, `limit` is
   never below `received`, and `received` never above what was sent.
10. Open says where the output begins. The box answers with an Ack (or with Ended or Refused) before any
    Output. Where the session was executed on the same channel, the client's Input begins at 0 and need not
    wait for that Ack. Elsewhere it waits, and begins at the `received` of that first Ack, which alone may
    be above what was sent. If a session that was executed here turns out to be known already, the client
    goes on at `received` if that is higher than what it has sent.
11. The box answers a Store of more than MAX_DATA_BYTES with one Ack: how many bytes it has kept of the same
    upload from a connection that broke, always fewer than all; its `limit` is the size. The client need not
    wait for it; its next Chunk may go on where it is, or at `received` if that is higher. The box drops
    what it has already.
12. Close is always answered by Gone (or was crossed by a Refused). After Ended, an Ack that includes its
    unit finishes the channel: now the box knows that the client has everything.
13. A padded session (its function has asked for it) ends so that all bytes which the box has sent on the
    connection, from its first to the last of Ended, are a multiple of what was asked for. Padding makes up
    what is missing, just before Ended. No frame of such a session but the last one crosses an offset that is
    a multiple of INITIAL_WINDOW / 4, so that a client that acknowledges there tells nothing by it. When that
    Ended is the last thing on its connection, the box answers a Shutdown by closing, without Gone: a client
    takes the end of the stream for its answer.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from bento_tor.protocol import messages as m
from bento_tor.protocol.messages import (
    Ack,
    Chunk,
    Close,
    Code,
    End,
    Ended,
    Execute,
    GetPolicy,
    Gone,
    Hello,
    Input,
    Message,
    Open,
    Output,
    Padding,
    Ping,
    Policy,
    Pong,
    Refused,
    Shutdown,
    Started,
    Store,
    Stored,
    Welcome,
)

MAX_CHANNELS = 32
MAX_UNANSWERED = 16

# What a frame may hold beside its one long field: the message's name, numbers, two tokens, a digest, a Name.
_FRAME_OVERHEAD_BYTES = 1024
# One character of text is at most four bytes of UTF-8.
_MAX_TEXT_BYTES = 4 * m.MAX_TEXT_CHARS
# Hello is about 50 bytes. A stranger who has not even said it gets no more of our memory.
MAX_HELLO_FRAME_BYTES = 256
# What a box may say before it has welcomed us: Welcome, or a Refused.
MAX_ANSWER_FRAME_BYTES = _MAX_TEXT_BYTES + _FRAME_OVERHEAD_BYTES
# Everything else. Data and policy are the longest fields; a manifest, arguments and a log are shorter.
MAX_FRAME_BYTES = max(m.MAX_DATA_BYTES, m.MAX_POLICY_BYTES) + _FRAME_OVERHEAD_BYTES


class Illegal(Exception):
    """This may not be said now. `Connection` makes it our error or the peer's; a box refuses with `code`."""

    def __init__(self, why: str, *, code: Code = Code.PROTOCOL) -> None:
        super().__init__(why)
        self.code = code


class Role(Enum):
    """The two ends of a connection."""

    CLIENT = "client"
    BOX = "box"

    @property
    def peer(self) -> Role:
        """The other one."""
        return Role.BOX if self is Role.CLIENT else Role.CLIENT


class ConnectionState(Enum):
    """Where a connection is."""

    NEW = auto()  # no Hello yet
    GREETED = auto()  # Hello said; the box owes the answer
    STALE = auto()  # the Welcome had another digest; the box owes Refused (channel 0, policy)
    UNSEEN = auto()  # the client has not accepted this policy: nothing can be run
    READY = auto()  # everything goes
    CLOSED = auto()  # refused, or at its end
    ERROR = auto()  # somebody broke a rule; for good


class ChannelState(Enum):
    """Where a channel is."""

    FRESH = auto()  # higher than all numbers so far
    UPLOADING = auto()  # bytes of code are due
    AWAITING = auto()  # all bytes are there; the box owes Stored
    RESUMING = auto()  # bytes of code are due; the box owes the Ack that says how many it has
    RESUMED = auto()  # all bytes are there; the box owes that Ack, then Stored
    CALLED = auto()  # Execute said; the box owes Started
    PIPELINED = auto()  # Execute and Open said; the box owes Started, then an Ack
    STARTED = auto()  # the session waits for an Open
    OPENING = auto()  # Open said where Execute was; the box owes an Ack, Input need not wait for it
    ATTACHING = auto()  # Open said on a fresh channel; the box owes an Ack, Input waits for it
    OPEN = auto()  # input and output flow
    ENDED = auto()  # the session is over; the client owes an Ack of everything
    CLOSING = auto()  # Close said; the box owes Gone
    ERASING = auto()  # Shutdown said; the box owes Gone
    FINISHED = auto()  # nothing more is kept of it


class Case(Enum):
    """Messages that the tables tell apart by more than their name."""

    ON_CHANNEL = "any message with a channel above 0"
    OTHER_DIGEST = "Welcome with another digest than Hello's"
    POLICY_REFUSED = "Refused (channel 0, policy)"
    EMPTY_STORE = "Store with size 0"
    BIG_STORE = "Store with a size above MAX_DATA_BYTES"
    LAST_CHUNK = "Chunk with the last byte"
    LAST_ACK = "Ack with the unit of Ended"


class Ignored(Enum):
    """Instead of a next state: its sender could not know better. Dropped, and nothing changes."""

    IGNORED = "ignored"


IGNORED = Ignored.IGNORED

Key: TypeAlias = type[Message] | Case
ConnectionTable: TypeAlias = dict[ConnectionState, dict[Key, ConnectionState | Ignored]]
ChannelTable: TypeAlias = dict[ChannelState, dict[Key, ChannelState | Ignored]]

_C = ConnectionState
_S = ChannelState

CONNECTION: dict[Role, ConnectionTable] = {
    Role.CLIENT: {
        _C.NEW: {Hello: _C.GREETED},
        _C.GREETED: {GetPolicy: _C.GREETED, Ping: _C.GREETED, Case.ON_CHANNEL: _C.GREETED},
        _C.STALE: {},
        _C.UNSEEN: {Hello: _C.GREETED, GetPolicy: _C.UNSEEN, Ping: _C.UNSEEN, Case.ON_CHANNEL: IGNORED},
        _C.READY: {GetPolicy: _C.READY, Ping: _C.READY, Case.ON_CHANNEL: _C.READY},
        _C.CLOSED: {},
        _C.ERROR: {},
    },
    Role.BOX: {
        _C.NEW: {Refused: _C.CLOSED},
        _C.GREETED: {Welcome: _C.READY, Case.OTHER_DIGEST: _C.STALE, Refused: _C.CLOSED},
        _C.STALE: {Case.POLICY_REFUSED: _C.UNSEEN, Refused: _C.CLOSED},
        _C.UNSEEN: {Policy: _C.UNSEEN, Pong: _C.UNSEEN, Refused: _C.CLOSED},
        _C.READY: {Policy: _C.READY, Pong: _C.READY, Case.ON_CHANNEL: _C.READY, Refused: _C.CLOSED},
        _C.CLOSED: {},
        _C.ERROR: {},
    },
}

CHANNEL: dict[Role, ChannelTable] = {
    Role.CLIENT: {
        _S.FRESH: {
            Store: _S.UPLOADING,
            Case.EMPTY_STORE: _S.AWAITING,
            Case.BIG_STORE: _S.RESUMING,
            Execute: _S.CALLED,
            Open: _S.ATTACHING,
            Shutdown: _S.ERASING,
        },
        _S.UPLOADING: {Chunk: _S.UPLOADING, Case.LAST_CHUNK: _S.AWAITING},
        _S.AWAITING: {},
        _S.RESUMING: {Chunk: _S.RESUMING, Case.LAST_CHUNK: _S.RESUMED},
        _S.RESUMED: {},
        _S.CALLED: {Open: _S.PIPELINED, Close: _S.CLOSING},
        _S.PIPELINED: {
            Input: _S.PIPELINED,
            Padding: _S.PIPELINED,
            Ack: _S.PIPELINED,
            End: _S.PIPELINED,
            Close: _S.CLOSING,
        },
        _S.STARTED: {Open: _S.OPENING, Close: _S.CLOSING},
        _S.OPENING: {
            Input: _S.OPENING,
            Padding: _S.OPENING,
            Ack: _S.OPENING,
            End: _S.OPENING,
            Close: _S.CLOSING,
        },
        _S.ATTACHING: {Ack: _S.ATTACHING, End: _S.ATTACHING, Close: _S.CLOSING},
        _S.OPEN: {Input: _S.OPEN, Padding: _S.OPEN, Ack: _S.OPEN, End: _S.OPEN, Close: _S.CLOSING},
        _S.ENDED: {
            Ack: _S.ENDED,
            Case.LAST_ACK: _S.FINISHED,
            Close: _S.CLOSING,
            Input: IGNORED,
            Padding: IGNORED,
            End: IGNORED,
        },
        _S.CLOSING: {},
        _S.ERASING: {},
        _S.FINISHED: {
            Chunk: IGNORED,
            Open: IGNORED,
            Input: IGNORED,
            Padding: IGNORED,
            Ack: IGNORED,
            End: IGNORED,
            Close: IGNORED,
        },
    },
    Role.BOX: {
        _S.FRESH: {},
        _S.UPLOADING: {Stored: _S.FINISHED, Refused: _S.FINISHED},
        _S.AWAITING: {Stored: _S.FINISHED, Refused: _S.FINISHED},
        _S.RESUMING: {Ack: _S.UPLOADING, Refused: _S.FINISHED},
        _S.RESUMED: {Ack: _S.AWAITING, Refused: _S.FINISHED},
        _S.CALLED: {Started: _S.STARTED, Refused: _S.FINISHED},
        _S.PIPELINED: {Started: _S.OPENING, Refused: _S.FINISHED},
        _S.STARTED: {Refused: _S.FINISHED},
        _S.OPENING: {Ack: _S.OPEN, Ended: _S.ENDED, Refused: _S.FINISHED},
        _S.ATTACHING: {Ack: _S.OPEN, Ended: _S.ENDED, Refused: _S.FINISHED},
        _S.OPEN: {
            Output: _S.OPEN,
            Padding: _S.OPEN,
            Ack: _S.OPEN,
            Ended: _S.ENDED,
            Refused: _S.FINISHED,
        },
        _S.ENDED: {Refused: _S.FINISHED},
        _S.CLOSING: {
            Gone: _S.FINISHED,
            Refused: _S.FINISHED,
            Started: IGNORED,
            Output: IGNORED,
            Padding: IGNORED,
            Ack: IGNORED,
            Ended: IGNORED,
        },
        _S.ERASING: {Gone: _S.FINISHED, Refused: _S.FINISHED},
        _S.FINISHED: {Refused: IGNORED},
    },
}

# The longest frame, in bytes, that the sender may begin in each state (the receiver's view of it).
FRAME_CAPS: dict[Role, dict[ConnectionState, int]] = {
    Role.CLIENT: {
        _C.NEW: MAX_HELLO_FRAME_BYTES,
        _C.UNSEEN: MAX_FRAME_BYTES,
        _C.READY: MAX_FRAME_BYTES,
    },
    Role.BOX: {
        _C.NEW: MAX_ANSWER_FRAME_BYTES,
        _C.GREETED: MAX_ANSWER_FRAME_BYTES,
        _C.STALE: MAX_ANSWER_FRAME_BYTES,
        _C.UNSEEN: MAX_FRAME_BYTES,
        _C.READY: MAX_FRAME_BYTES,
    },
}
