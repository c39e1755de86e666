"""One errand: what one function wants of one other box, on one connection of its own. Blocking; runs in worker.py.

The client library is handed in as `Reach`: this part of the house is under it (docs/architecture.md). It has no verb
for storing anything anywhere: a function can use what it was given, and make nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from bento_tor.courier import words
from bento_tor.courier.words import Attach, Input, Run, Shutdown, Stop
from bento_tor.errors import BentoError, ProtocolError, Refused, RemoteProtocolError
from bento_tor.policy.outcome import Outcome


class Piece(Protocol):
    """Some bytes of a message; `end`: they are its last."""

    @property
    def data(self) -> bytes:
        """They."""

    @property
    def end(self) -> bool:
        """See above."""


class FarSession(Protocol):
    """A session at another box; see client/session.py."""

    @property
    def token(self) -> bytes:
        """With which one comes back to it."""

    @property
    def log(self) -> bytes:
        """What its function printed last, once it has ended."""

    def wait_attached(self) -> None:
        """Until that box has let us in. Raises BentoError."""

    def put(self, data: bytes, *, end: bool, eof: bool) -> bool:
        """A part of its input. False: it has ended."""

    def maybe_piece(self) -> Piece | None:
        """The next bytes of output; None after its end."""

    def wait(self) -> Outcome:
        """How it ended."""

    def end(self) -> None:
        """Stop it."""


class FarBox(Protocol):
    """Another box, as far as a function may use it."""

    def start(self, invocation: bytes, name: str, arguments: str) -> FarSession:
        """A session of a function that is stored there, for a function: it goes no further."""

    def attach(self, token: bytes, offset: int) -> FarSession:
        """A session that runs there."""

    def shutdown(self, token: bytes) -> None:
        """Erase a function there."""


# A stream to the box; or why there is none, as tor's SOCKS port or the courier says it (egress/socks5.py).
Dial = Callable[[], socket.socket | int]


class Reach(Protocol):
    """The client library: a box at an address, over streams that `dial` gives."""

    def __call__(self, address: str, dial: Dial) -> AbstractContextManager[FarBox]:
        """Its methods, and those of what they give, raise BentoError."""


class Errand:
    """Serves one connection of a function's. `leave` ends the process: the function has gone."""

    def __init__(self, conn: socket.socket, leave: Callable[[], None] = lambda: os._exit(0)) -> None:
        self._conn = conn
        self._leave = leave

    def run(self, reach: Reach, address: str, dial: Dial) -> None:
        """To its end, of which the function hears. Raises OSError where it does not listen."""
        try:
            order = self._read()
            with reach(address, dial) as there:
                self._serve(there, order)
        except Refused as why:
            self._conn.sendall(words.refusal("full" if why.code == "full" else "refused", why.message))
        except ProtocolError as why:
            self._conn.sendall(words.refusal("misused", why.message))
        except BentoError as why:
            self._conn.sendall(words.refusal("unreachable", why.message))

    def _serve(self, there: FarBox, order: words.Order) -> None:
        if isinstance(order, Shutdown):
            there.shutdown(order.token)
            self._conn.sendall(words.frame(words.DONE))
        elif isinstance(order, Run):
            self._talk(there.start(order.token, order.name, order.arguments))
        elif isinstance(order, Attach):
            self._talk(there.attach(order.token, order.offset))
        else:
            raise RemoteProtocolError("input for no session")

    def _talk(self, session: FarSession) -> None:
        session.wait_attached()
        self._conn.sendall(words.frame(words.STARTED, session.token))
        threading.Thread(target=self._feed, args=(session,), daemon=True).start()
        while (piece := session.maybe_piece()) is not None:
            view = memoryview(piece.data)
            for start in range(0, len(view) or 1, words.MAX_PART_BYTES):
                part = view[start : start + words.MAX_PART_BYTES]
                last = piece.end and start + words.MAX_PART_BYTES >= len(view)
                self._conn.sendall(words.frame(words.MESSAGE, bytes([last]) + part))
        outcome = session.wait()
        facts = {"outcome": outcome.word, "detail": outcome.detail, "log": session.log.decode("utf-8", "replace")}
        self._conn.sendall(words.frame(words.ENDED, json.dumps(facts).encode()))

    def _feed(self, session: FarSession) -> None:
        """Hand on what the function says, at the pace at which the other box takes it."""
        try:
            while isinstance(order := self._read(), Input | Stop):
                with suppress(BentoError):  # the thread that reads there hears of it, and tells
                    self._hand_on(session, order)
        except (OSError, ProtocolError):
            pass
        # It has gone, or says what it must not: what it has opened is closed.
        self._leave()

    def _hand_on(self, session: FarSession, order: Input | Stop) -> None:
        if isinstance(order, Input):
            session.put(order.data, end=order.end, eof=order.eof)
        else:
            session.end()

    def _read(self) -> words.Order:
        kind, length = words.HEADER.unpack(self._exactly(words.HEADER.size))
        return words.decode(kind, self._exactly(words.body_bytes(kind, length)))

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._conn.recv(count - len(data))
            if not piece:
                raise ConnectionAbortedError("the function hangs up")
            data += piece
        return bytes(data)
