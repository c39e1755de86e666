"""Many connections over one session, as functions/proxy.py speaks it: its docstring is the contract.

Every message comes from a function and is hostile: numbers that are not ours, data beyond its credit and messages that
are none end everything. Nobody waits for one slow connection: each has its own credit, and no more than that is kept.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from bento_tor.errors import BentoError, RemoteProtocolError

WINDOW_BYTES = 256 * 1024
PIECE_BYTES = 32 * 1024
MOST = 256
_HEAD = struct.Struct("!BI")
_CREDIT_BYTES = 4
_MOST_HOST_BYTES = 255
# What the box's broker says beyond SOCKS5's own codes (egress/socks5.py), as programs know it. tor's pass as they are.
_FAILED, _NOT_ALLOWED = 1, 2
_CODES = {0x90: _FAILED, 0x91: _FAILED, 0x92: _FAILED, 0x93: _NOT_ALLOWED}
_KNOWN_CODES = frozenset([*range(1, 9), *range(0xF0, 0xF8)])


class Kind(IntEnum):
    """What a message is."""

    OPEN = 1
    OPENED = 2
    REFUSED = 3
    DATA = 4
    END = 5
    RESET = 6
    CREDIT = 7


# The length of what follows the number, in messages from a function: least and most.
_LENGTHS = {
    Kind.OPENED: (0, 0),
    Kind.REFUSED: (1, 1),
    Kind.DATA: (1, PIECE_BYTES),
    Kind.END: (0, 0),
    Kind.RESET: (0, 0),
    Kind.CREDIT: (_CREDIT_BYTES, _CREDIT_BYTES),
}


class Unopened(BentoError):
    """There is no such connection to be had. `code`: SOCKS5's, for why not."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the box does not open this connection (SOCKS code {code})")
        self.code = code


class Reset(BentoError):
    """The connection broke, or everything has ended."""

    def __init__(self) -> None:
        super().__init__("the connection was reset")


class Streams:
    """All connections of one session. One thread hands in what comes (`take`); any others use the connections."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self.opened = 0  # in all
        self._send = send
        self._opening = threading.Lock()  # numbers go out in their order; never held by who takes what comes
        self._state = threading.Condition()
        self._live: dict[int, Stream] = {}
        self._highest = 0
        self._over = False

    def open(self, host: str, port: int) -> Stream:
        """A connection from the box to there; waits for it. Raises Unopened, and Reset where all is over."""
        name = host.encode("ascii", "replace")
        if not 0 < len(name) <= _MOST_HOST_BYTES:
            raise Unopened(_FAILED)
        with self._opening:
            stream = self._fresh()
            self.say(Kind.OPEN, stream.number, port.to_bytes(2, "big") + name)
        stream.wait_opened()
        return stream

    def _fresh(self) -> Stream:
        with self._state:
            if self._over:
                raise Reset
            if len(self._live) >= MOST:
                raise Unopened(_FAILED)
            self._highest += 1
            stream = Stream(self, self._highest, self._state)
            self._live[stream.number] = stream
            return stream

    def take(self, message: bytes) -> None:
        """What the function says. Raises RemoteProtocolError for what it may not say."""
        kind, number, rest = _cut(message)
        with self._state:
            if number > self._highest or number == 0:
                raise _wrong(f"speaks of connection {number}, which nobody opened")
            stream = self._live.get(number)
            if stream is not None:
                stream.take(kind, rest)
                self._state.notify_all()

    def close(self) -> None:
        """Everything is over: whoever waits is told."""
        with self._state:
            self._over = True
            for stream in list(self._live.values()):
                stream.break_off()
            self._state.notify_all()

    def say(self, kind: Kind, number: int, rest: bytes = b"") -> None:
        """To the function. Raises Reset where it has gone."""
        try:
            if not self._over and self._send(_HEAD.pack(kind, number) + rest) is not False:
                return
        except BentoError as why:
            raise Reset from why
        raise Reset

    def forget(self, stream: Stream) -> None:
        """Its number is done; the lock is held."""
        self._live.pop(stream.number, None)


class Stream:
    """One connection. One thread sends, one receives."""

    def __init__(self, streams: Streams, number: int, state: threading.Condition) -> None:
        self.number = number
        self._streams = streams
        self._state = state
        self._maybe_answer: int | None = None  # 0: opened; else SOCKS5's code
        self._pieces: deque[bytes] = deque()
        self._credit = WINDOW_BYTES  # bytes that we may send
        self._owed = 0  # bytes that have come, and are not given back as credit
        self._used = 0  # of these: dealt with
        self._ended_here = self._ended_there = self._broken = False

    def wait_opened(self) -> None:
        """Raises Unopened or Reset. There is no deadline: the box has its own."""
        with self._state:
            self._state.wait_for(lambda: self._maybe_answer is not None or self._broken)
            if self._maybe_answer:
                raise Unopened(self._maybe_answer)
            if self._broken:
                raise Reset

    def send(self, data: bytes) -> None:
        """Send all of it, as the other end takes it. Raises Reset."""
        while data:
            with self._state:
                self._state.wait_for(lambda: self._credit or self._broken)
                if self._broken:
                    raise Reset
                piece, data = data[: min(self._credit, PIECE_BYTES)], data[min(self._credit, PIECE_BYTES) :]
                self._credit -= len(piece)
            self._streams.say(Kind.DATA, self.number, piece)

    def end(self) -> None:
        """Nothing more will be sent; it can still receive. Raises Reset."""
        with self._state:
            if self._broken:
                raise Reset
            self._ended_here = True
            self._maybe_done()
        self._streams.say(Kind.END, self.number)

    def receive(self) -> bytes:
        """The next bytes; waits for them. Empty: there will be no more. To ask for the next says that the ones before
        are dealt with. Raises Reset."""
        with self._state:
            given, self._used = self._used, 0
            # In few messages: a quarter of the window, or what is left where the other end waits for it.
            give = given if given >= WINDOW_BYTES // 4 and not self._ended_there else 0
            self._used = given - give
            self._owed -= give
        if give:
            self._streams.say(Kind.CREDIT, self.number, give.to_bytes(_CREDIT_BYTES, "big"))
        with self._state:
            self._state.wait_for(lambda: self._pieces or self._ended_there or self._broken)
            if self._pieces:
                piece = self._pieces.popleft()
                self._used += len(piece)
                return piece
            if self._broken:
                raise Reset
            return b""

    def reset(self) -> None:
        """Give it up. Harmless when repeated, and on what is done."""
        with self._state:
            known = not self._broken and not (self._ended_here and self._ended_there)
            self.break_off()
            self._state.notify_all()
        if known:
            try:
                self._streams.say(Kind.RESET, self.number)
            except Reset:
                return

    def break_off(self) -> None:
        """It has broken; the lock is held."""
        self._broken = True
        self._pieces.clear()
        self._streams.forget(self)

    def take(self, kind: Kind, rest: bytes) -> None:
        """What the function says of it; the lock is held. Raises RemoteProtocolError."""
        if (kind in (Kind.OPENED, Kind.REFUSED)) != (self._maybe_answer is None) and kind is not Kind.RESET:
            raise _wrong(f"says {kind.name} of connection {self.number} at the wrong time")
        if kind is Kind.OPENED:
            self._maybe_answer = 0
            self._streams.opened += 1
        elif kind is Kind.REFUSED:
            code = _CODES.get(rest[0], rest[0])
            self._maybe_answer = code if code in _KNOWN_CODES else _FAILED
            self._streams.forget(self)
        elif kind is Kind.RESET:
            self.break_off()
        elif kind is Kind.CREDIT:
            self._credit += int.from_bytes(rest, "big")
            if self._credit > WINDOW_BYTES:
                raise _wrong(f"gives connection {self.number} more credit than there is")
        elif self._ended_there:
            raise _wrong(f"sends to connection {self.number} after its end")
        elif kind is Kind.END:
            self._ended_there = True
            self._maybe_done()
        else:
            self._owed += len(rest)
            if self._owed > WINDOW_BYTES:
                raise _wrong(f"sends more to connection {self.number} than it has credit for")
            self._pieces.append(rest)

    def _maybe_done(self) -> None:
        if self._ended_here and self._ended_there:
            self._streams.forget(self)


def _cut(message: bytes) -> tuple[Kind, int, bytes]:
    if len(message) < _HEAD.size:
        raise _wrong(f"sends a message of {len(message)} bytes")
    word, number = _HEAD.unpack_from(message)
    rest = message[_HEAD.size :]
    least, most = _LENGTHS.get(word, (1, 0))
    if not least <= len(rest) <= most:
        raise _wrong(f"sends a message {word} of {len(rest)} bytes")
    return Kind(word), number, rest


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the function {what}", hint="this box changes functions: leave it")
