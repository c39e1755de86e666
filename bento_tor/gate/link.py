"""The box's line to the gate: what a session may, what it asks, and the answers. For asyncio."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket

from bento_tor.gate import words
from bento_tor.gate.words import Allow, Ask, Declined, Told
from bento_tor.sandbox.frames import TorRequest

log = logging.getLogger(__name__)

_ANSWER_S = 60.0
_GONE = Declined(0, "unavailable", "this box's way to tor is closed")


class GateLine:
    """Our end of a SOCK_SEQPACKET pair. Never waits for the gate but in `ask`, and there not for ever."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Told | Declined]] = {}
        self._open = False

    def open(self) -> None:
        """Start listening, in the running event loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)
        self._open = True

    def close(self) -> None:
        """Hang up: the gate ends, and with it all that sessions have in tor."""
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(_GONE)

    def allow(self, number: int, routines: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        """What session `number` may; none: its door is closed."""
        self._send(Allow(number, routines, hosts))

    async def ask(self, number: int, request: TorRequest) -> Told | Declined:
        """What session `number` wants."""
        which = next(self._numbers)
        answer: asyncio.Future[Told | Declined] = asyncio.get_running_loop().create_future()
        self._asked[which] = answer
        try:
            if not self._send(Ask(number, which, request.verb, request.handle, request.port, request.host)):
                return _GONE
            async with asyncio.timeout(_ANSWER_S):
                return await answer
        except TimeoutError:
            return _GONE
        finally:
            del self._asked[which]

    def _send(self, message: Allow | Ask) -> bool:
        try:
            self._sock.send(words.encode(message))
        except OSError:
            return False
        return self._open

    def _receive(self) -> None:
        try:
            packet = self._sock.recv(words.MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        message = words.maybe_from_gate(packet)
        if message is None:
            log.warning("the gate has gone" if not packet else "the gate says what it never says")
            self.close()
        elif (answer := self._asked.get(message.request)) is not None and not answer.done():
            answer.set_result(message)
