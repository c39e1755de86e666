"""A client that reads a session: output to it as far as its window lets, until there is no more to say.

Owns one channel's place in the output, and which of several readers is the newest. Where the bytes go is a `Place`:
the connection, to be handed in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from bento_tor.errors import LocalProtocolError
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import Role
from bento_tor.protocol.frames import encode
from bento_tor.server import padding
from bento_tor.server.session import Session
from bento_tor.server.spool import Spoilt

log = logging.getLogger(__name__)

# Input is acknowledged when this much has been taken since the last Ack.
_ACK_EVERY_UNITS = m.INITIAL_WINDOW // 4
# What one reading sends before the next one of its connection has its turn: as much bulk as one write should be, or so
# many small messages.
_TURN_BYTES = 64 * 1024
_TURN_MESSAGES = 64


class Place(Protocol):
    """The connection on which somebody reads."""

    def window(self, channel: int) -> int:
        """Units that may be sent on this channel now."""

    async def send(self, *messages: m.Message) -> None:
        """Send, in one write."""

    @property
    def sent_bytes(self) -> int:
        """What has gone on this connection so far, from its first byte."""

    def seal(self) -> None:
        """A padded session ends here: what would be said after it would be too much."""

    async def send_in_turn(self, make: Callable[[], Sequence[m.Message]]) -> bool:
        """Wait until all who waited before have sent, then send what `make` gives. False: it gave nothing."""

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
        has_all = self.told and received > self.session.output.stop
        if has_all:
            self._place.leave(self._channel)
        # Whoever was told the end before the newest reader came is displaced too: what he acknowledges, that one has
        # not got.
        if not self.session.is_newest(self._on_displaced):
            return False
        self.session.acknowledge(received)
        return has_all

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
        except Spoilt as why:
            with suppress(LocalProtocolError, ConnectionError, TimeoutError):
                await self._be_spoilt(why)
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
        held = self.session.promise.holds
        while not held and self._may_go_on and self._place.window(self._channel):
            await self.session.backlog.load(self._offset)
            sent = await self._place.send_in_turn(self._next_pieces)
            # A reader before us may have loaded something else meanwhile.
            if not sent and self.session.output.maybe_block(self._offset) is None:
                break
        if self.displaced:
            return await self._step()
        if self._offset < self.session.output.base:
            # The function was erased, or the session forgotten: nothing will ever come, and he must not wait for it.
            self._place.leave(self._channel)
            await self._place.send(m.Refused(self._channel, m.Code.OFFSET, "the output from there on is not kept"))
            return True
        outcome = self.session.maybe_outcome
        if held or outcome is None or self._offset < self.session.output.stop:
            return False
        ended = _ended(self._channel, outcome, self.session.log_tail)
        while not self.told and await self._place.send_in_turn(lambda: self._last_pieces(ended)):
            pass
        return self.told

    @property
    def _may_go_on(self) -> bool:
        """Whether what comes next is for us, and still kept."""
        return not self.displaced and self._offset >= self.session.output.base

    async def _be_spoilt(self, why: Spoilt) -> None:
        """Say that what is kept cannot be read; where it was freed under us, that is no fault of the disk's."""
        if not self._may_go_on:
            await self._step()
            return
        log.error("%s", why.message)
        self._place.leave(self._channel)
        await self._place.send(m.Refused(self._channel, m.Code.OFFSET, "the output from there on is lost"))

    def _next_pieces(self) -> list[m.Message]:
        """What goes out in one turn: within the window, and no more than is fair to the connection's other readings."""
        messages: list[m.Message] = []
        if not self._may_go_on:
            # While we waited for our turn a newer reader has taken over, and what is at our offset may be gone.
            return messages
        window, room = self._place.window(self._channel), _TURN_BYTES
        while window and room > 0 and len(messages) < _TURN_MESSAGES:
            most_units = min(window, self._step_units)
            piece = self.session.output.maybe_read(self._offset, most_units, min(room, m.MAX_DATA_BYTES))
            if piece is None:
                break
            if piece.padding:
                messages.append(m.Padding(self._channel, piece.offset, piece.data))
            else:
                messages.append(m.Output(self._channel, piece.offset, piece.data, piece.end))
            self._offset = piece.stop
            window -= piece.stop - piece.offset
            room -= len(piece.data)
        return messages

    @property
    def _step_units(self) -> int:
        """How far the next frame may go."""
        step = padding.STEP_UNITS
        return step - self._offset % step if self.session.promise.multiple else 1 << 62

    def _last_pieces(self, ended: m.Ended) -> list[m.Message]:
        """What goes out in one turn after all output: padding where it was promised, and the end. Nothing: the window
        is full. Made in our turn, so that nobody's bytes come between the count and the end."""
        messages: list[m.Message] = []
        if not self._may_go_on:
            return messages
        channel, multiple = self._channel, self.session.promise.multiple
        gap = padding.gap_bytes(self._place.sent_bytes, len(encode(ended, Role.BOX)), multiple)
        window, room = self._place.window(channel), _TURN_BYTES
        while room > 0 and (gap := padding.reachable(gap, multiple, channel, self._offset)):
            units = min(window, room)
            length = padding.next_length(gap, channel, self._offset, min(units, self._step_units))
            # The very last bytes need not stop at a step, or too little might be left behind it.
            length = length or padding.next_length(gap, channel, self._offset, units)
            if not length:
                return messages
            self.session.output.append_padding(length)
            messages.append(m.Padding(channel, self._offset, bytes(length)))
            gap -= padding.frame_bytes(channel, self._offset, length)
            self._offset += length
            window -= length
            room -= length
        if not gap:
            self.told = True
            messages.append(ended)
            if multiple:
                self._place.seal()
        return messages

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
