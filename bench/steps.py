"""A client that says one thing, waits for its answer, and says the next: as clients did in 2021.

The protocol only; how the stream was opened, and on which circuit, is not known here.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TypeVar

from bento_tor.errors import BentoError
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, Role

M = TypeVar("M")


class Step:
    """A client of 2021: says one thing, waits for its answer, says the next."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._connection = Connection(Role.CLIENT)
        self._heard: deque[object] = deque()

    def ask(self, wanted: type[M], *messages: m.Message) -> M:
        """Say it, wait for an answer of this kind. Raises BentoError where there comes none."""
        self._sock.sendall(self._connection.send_many(messages))
        while True:
            while self._heard:
                heard = self._heard.popleft()
                if isinstance(heard, m.Refused):
                    raise BentoError(f"the box refused: {heard.message}")
                if isinstance(heard, wanted):
                    return heard
            data = self._sock.recv(1 << 16)
            if not data:
                raise BentoError("the box hung up")
            self._connection.receive_data(data)
            while (event := self._connection.next_event()) is not NEED_DATA:
                self._heard.append(event)
