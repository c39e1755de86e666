"""Two connections joined back to back, and the ways to feed one what the other sent. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from bento_tor.protocol import NEED_DATA, Connection, ConnectionState, EndOfStream, NeedData, Role
from bento_tor.protocol import messages as m

POLICY = m.Policy(b"the policy")
DIGEST = b"d" * m.DIGEST_BYTES
OTHER = b"o" * m.DIGEST_BYTES

# How a receiver gets its bytes: whole, byte by byte, or in pieces of so many.
Cuts = Sequence[int]
WHOLE: Cuts = ()
BYTES: Cuts = (1,)


def greeting(hello: m.Hello) -> list[m.Message]:
    """What a box with policy DIGEST says to a Hello."""
    welcome = m.Welcome(m.VERSION, DIGEST)
    return (
        [welcome] if hello.policy == DIGEST else [welcome, m.Refused(0, m.Code.POLICY, "read the policy first"), POLICY]
    )


def pieces(data: bytes, cuts: Cuts) -> Iterable[bytes]:
    """`data` in pieces of the sizes in `cuts`, over and over."""
    sizes = list(cuts) or [len(data) or 1]
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at, turn = at + size, turn + 1


class End:
    """One end; a box answers each Hello as soon as it hears it."""

    def __init__(self, role: Role, *, max_channels: int = 32) -> None:
        self.connection = Connection(role, max_channels=max_channels)
        self.unsent = b""
        self.closed = False

    def say(self, *messages: m.Message) -> bytes:
        """The bytes of `messages`, behind the answers that are due."""
        data = self.unsent + self.connection.send_many(messages)
        self.unsent = b""
        return data

    def hear(self, data: bytes, cuts: Cuts = WHOLE) -> list[m.Message]:
        """What the peer said. Like every user, it takes all events before it gives more data."""
        heard: list[m.Message] = []
        for piece in pieces(data, cuts):
            self.connection.receive_data(piece)
            self._drain(heard.append)
        return heard

    def _drain(self, take: Callable[[m.Message], None]) -> None:
        while not isinstance(event := self.connection.next_event(), NeedData):
            if isinstance(event, EndOfStream):
                self.closed = True
                return
            take(event)
            if isinstance(event, m.Hello):
                self.unsent += self.connection.send_many(greeting(event))


class Pair:
    """A client and a box."""

    def __init__(self, cuts: Cuts = WHOLE, *, max_channels: int = 32) -> None:
        self.client = End(Role.CLIENT, max_channels=max_channels)
        self.box = End(Role.BOX, max_channels=max_channels)
        self.cuts = cuts

    def client_says(self, *messages: m.Message) -> list[m.Message]:
        """What the box hears of it."""
        return self.box.hear(self.client.say(*messages), self.cuts)

    def box_says(self, *messages: m.Message) -> list[m.Message]:
        """What the client hears of it, answers to Hello first."""
        return self.client.hear(self.box.say(*messages), self.cuts)


def frame(body: bytes) -> bytes:
    """A frame around any body."""
    return len(body).to_bytes(4, "big") + body


def raw(*values: object) -> bytes:
    """Frames of any values, unchecked: what an attacker writes."""
    return b"".join(frame(msgspec.msgpack.encode(value)) for value in values)


def is_waiting(connection: Connection) -> bool:
    """Nothing is there to be read."""
    return connection.next_event() is NEED_DATA


def is_over(connection: Connection) -> bool:
    """In ERROR, and no event will come."""
    return connection.state is ConnectionState.ERROR and isinstance(connection.next_event(), EndOfStream)
