"""A client that reads a session: output to it as far as its window lets, until there is no more to say.

Owns one channel's place in the output, and which of several readers is the newest. Where the bytes go is a `Place`:
the connection, to be handed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from bento_tor.errors import LocalProtocolError
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import messages as m
from bento_tor.server.sessions import Session

# Input is acknowledged when this much has been taken since the last Ack.
_ACK_EVERY_UNITS = m.INITIAL_WINDOW // 4


class Place(Protocol):
    """The connection on which somebody reads."""

    def window(self, channel: int) -> int:
        """Units that may be sent on this channel now."""

    async def send(self, *messages: m.Message) -> None:
        """Send, in one write."""

    def abort(self) -> None:
        """Drop the connection now."""

    def leave(self, channel: int) -> None:
        """The reading on this channel is over."""


class Reading:
    """A client attached to a session on one channel: carries output to it while the window allows."""

    def __init__(self, place: Place, session: Session, channel: int, offset: int) -> None:
        self.session = session
        self.told = False  # the end has been sent
        self.displaced = False  # a newer reader has taken over
        self._place = place
        self._channel = channel
        self._offset = offset
        self._acked_limit = 0
        self._maybe_task: asyncio.Task[None] | None = None
        self._on_displaced: Callable[[], None] = self._displace

    def start(self) -> None:
        """Take over from an older reader, and begin."""
        self.session.attach(self._on_displaced)
        self._maybe_task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Detach; the session goes on."""
        self.session.detach(self._on_displaced)
        self._place.leave(self._channel)
        if self._maybe_task is not None:
            self._maybe_task.cancel()

    def acknowledge(self, received: int) -> bool:
        """Take an Ack. True: the client has everything, the end included; nothing need be kept."""
        self.session.acknowledge(received)
        if not (self.told and received > self.session.output.stop):
            return False
        self._place.leave(self._channel)
        return True

    async def _run(self) -> None:
        try:
            while True:
                # Taken before the step: a change during it must not be missed.
                bell = self.session.bell
                if await self._step():
                    return
                await bell.wait()
        except LocalProtocolError:
            pass  # the client has broken the protocol meanwhile: its refusal is on its way
        except (ConnectionError, TimeoutError):
            self._place.abort()
        finally:
            self.session.detach(self._on_displaced)

    async def _step(self) -> bool:
        """Send what can be sent now. True: there is no more to send, ever."""
        if self.displaced:
            self._place.leave(self._channel)
            await self._place.send(m.Refused(self._channel, m.Code.DISPLACED, "another client reads this session now"))
            return True
        await self._tell_window()
        while window := self._place.window(self._channel):
            piece = self.session.output.maybe_read(self._offset, window, m.MAX_DATA_BYTES)
            if piece is None:
                break
            self._offset = piece.stop
            if piece.padding:
                await self._place.send(m.Padding(self._channel, piece.offset, piece.data))
            else:
                await self._place.send(m.Output(self._channel, piece.offset, piece.data, piece.end))
        outcome = self.session.maybe_outcome
        if outcome is None or self._offset < self.session.output.stop:
            return False
        self.told = True
        await self._place.send(_ended(self._channel, outcome, self.session.log_tail))
        return True

    async def _tell_window(self) -> None:
        limit = self.session.input_limit
        if limit - self._acked_limit >= _ACK_EVERY_UNITS:
            self._acked_limit = limit
            await self._place.send(m.Ack(self._channel, self.session.input_received, limit))

    def _displace(self) -> None:
        self.displaced = True
        self.session.ring()


def _ended(channel: int, outcome: Outcome, log_tail: bytes) -> m.Ended:
    return m.Ended(channel, outcome.word, outcome.detail[: m.MAX_TEXT_CHARS], log_tail)
