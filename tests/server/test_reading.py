"""Readers of one session, and what each of them must not do to another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import messages as m
from bento_tor.server.output import Tally
from bento_tor.server.reading import Reading
from bento_tor.server.session import Session
from bento_tor.server.spool import Spool


class Client:
    """A connection on which one session is read; `turn`: held while somebody else has to send."""

    def __init__(self, window: int = 1 << 20) -> None:
        self.told: list[m.Message] = []
        self.turn = asyncio.Lock()
        self._window = window

    def window(self, channel: int) -> int:
        return self._window

    async def send(self, *messages: m.Message) -> None:
        self.told += messages

    async def send_in_turn(self, make: Callable[[], Sequence[m.Message]]) -> bool:
        async with self.turn:
            made = make()
            self.told += made
            self._window -= sum(len(each.data) + each.end for each in made if isinstance(each, m.Output))
            return bool(made)

    @property
    def sent_bytes(self) -> int:
        return 0

    def seal(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def leave(self, channel: int) -> None:
        pass

    def data(self) -> bytes:
        return b"".join(each.data for each in self.told if isinstance(each, m.Output))

    async def until(self, kind: type[m.Message]) -> m.Message:
        """Wait for a message of this kind."""
        async with asyncio.timeout(10):
            while not (found := [each for each in self.told if isinstance(each, kind)]):
                await asyncio.sleep(0)
        return found[0]


async def no_host() -> dict[str, object]:
    return {}


def new_session() -> Session:
    return Session(b"s" * 32, b"f" * 32, kept_bytes=1 << 20, host=no_host)


def test_who_waits_for_his_turn_while_a_newer_reader_takes_over_is_sent_nothing_wrong() -> None:
    async def play() -> None:
        session, slow, newer = new_session(), Client(), Client()
        first = Reading(slow, session, 1, 0)
        async with slow.turn:
            session.output.append(bytes(range(100)), end=True)
            first.start()
            await slow.until(m.Ack)
            second = Reading(newer, session, 1, 0)
            second.start()
            await newer.until(m.Output)
            session.output.append(bytes(range(100, 200)), end=True)
            second.acknowledge(90)
        refused = await slow.until(m.Refused)
        assert isinstance(refused, m.Refused) and refused.code is m.Code.DISPLACED
        assert slow.data() == b"", "what was at its offset is forgotten: anything else would be wrong"
        second.stop()

    asyncio.run(play())


def test_a_reader_who_had_the_end_takes_nothing_from_a_newer_one() -> None:
    async def play() -> None:
        session, early, newer = new_session(), Client(), Client(window=10)
        session.output.append(b"x" * 100, end=True)
        first = Reading(early, session, 1, 0)
        first.start()
        session.finish(Outcome.returned())
        await early.until(m.Ended)
        second = Reading(newer, session, 1, 0)
        second.start()
        await newer.until(m.Output)
        assert not first.acknowledge(102), "the newer one has not got it"
        assert session.output.base == 0
        assert not second.acknowledge(10)
        assert session.output.base == 10
        second.stop()

    asyncio.run(play())


def test_a_reader_of_what_is_forgotten_is_told_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def play() -> None:
        spool = Spool(tmp_path, 1 << 20)
        session, client = new_session(), Client(window=10)
        session.backlog.keep_on(spool.shelf(), Tally())
        session.output.append(b"x" * 100, end=True)
        Reading(client, session, 1, 0).start()
        await client.until(m.Output)
        session.backlog.drop()
        session.ring()
        refused = await client.until(m.Refused)
        assert isinstance(refused, m.Refused) and refused.code is m.Code.OFFSET
        spool.close()

    asyncio.run(play())


def test_what_another_reader_has_loaded_meanwhile_is_loaded_again(tmp_path: Path) -> None:
    async def play() -> None:
        spool = Spool(tmp_path, 1 << 20)
        session, slow, client = new_session(), Client(), Client()
        session.backlog.keep_on(spool.shelf(), Tally())
        for number in range(20):
            session.output.append(bytes([number]) * 10_000, end=True)
        assert await session.backlog.has_room() and session.output.away_bytes
        session.finish(Outcome.returned())
        old = Reading(slow, session, 1, 0)
        old.start()
        reading = Reading(client, session, 1, 0)
        async with client.turn:
            reading.start()
            await client.until(m.Ack)
            # As a reader that was displaced may do who still waits for the disk.
            await session.backlog.load(session.output.stop - 70_000)
        await client.until(m.Ended)
        assert client.data() == b"".join(bytes([number]) * 10_000 for number in range(20))
        spool.close()

    asyncio.run(play())
