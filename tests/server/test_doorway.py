"""Who is let in, and who has to go."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest

from bento_tor.server import doorway
from bento_tor.server.doorway import Doorway, Guest

LINE = b"PROXY TCP6 fc00:dead:beef:4dad::%d:%d ::1 65535 80\r\n"


class Client:
    """One connection, as the door knows it."""

    def __init__(self, idle_s: float = 0.0) -> None:
        self.idle_s = idle_s
        self.was_put_out = False

    def abort(self) -> None:
        self.was_put_out = True


async def knock(door: Doorway, first: bytes = b"") -> tuple[Guest | None, bytes]:
    """Who it is, and what he is told."""
    ours, theirs = socket.socketpair()
    with ours:
        reader, writer = await asyncio.open_connection(sock=theirs)
        ours.sendall(first)
        guest = await door.maybe_admit(reader, writer)
        writer.close()
        await writer.wait_closed()
        return guest, ours.recv(1000)


def test_connections_of_one_circuit_are_one_guest_and_others_are_not() -> None:
    async def play() -> None:
        door = Doorway(10, circuit_ids=True)
        with ExitStack() as stack:
            guests = []
            for circuit in (1, 1, 2):
                guest, _ = await knock(door, LINE % (0, circuit))
                assert guest is not None
                stack.enter_context(door.inside(guest, Client()))
                guests.append(guest)
            assert guests[0] is guests[1] is not guests[2]
        strangers = Doorway(10)
        assert (await knock(strangers))[0] is not (await knock(strangers))[0]

    asyncio.run(play())


def test_the_circuit_with_most_connections_loses_its_newest_idle_one() -> None:
    async def play() -> None:
        door = Doorway(4, circuit_ids=True)
        clients = [Client(idle_s) for idle_s in (3.0, 2.0, 0.0, 0.0)]
        with ExitStack() as stack:
            for client, circuit in zip(clients, (1, 1, 1, 2), strict=True):
                guest, _ = await knock(door, LINE % (0, circuit))
                assert guest is not None
                stack.enter_context(door.inside(guest, client))
            newcomer, _ = await knock(door, LINE % (0, 3))
            assert newcomer is not None
            assert [client.was_put_out for client in clients] == [False, True, False, False]
            stack.enter_context(door.inside(newcomer, Client()))
            # The greatest does not grow at the cost of others.
            guest, told = await knock(door, LINE % (0, 1))
            assert guest is None and b"full" in told
        assert door._inside == 0 and not door._guests

    asyncio.run(play())


def test_without_circuits_who_has_long_been_idle_makes_room_and_nobody_else() -> None:
    async def play() -> None:
        door = Doorway(2)
        clients = [Client(9.0), Client(0.0)]
        with ExitStack() as stack:
            for client in clients:
                guest, _ = await knock(door)
                assert guest is not None
                stack.enter_context(door.inside(guest, client))
            guest, told = await knock(door)
            assert guest is None and b"full" in told
            clients[0].idle_s = 11.0
            assert (await knock(door))[0] is not None
            assert clients[0].was_put_out and not clients[1].was_put_out

    asyncio.run(play())


@pytest.mark.parametrize("first", [b"", b"PROXY TCP6 fc00:dead:beef:4dad::1:1 ::1 655"])
def test_who_does_not_say_his_line_in_time_is_turned_away(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "_LINE_S", 0.05)

    async def play() -> None:
        guest, told = await knock(Doorway(2, circuit_ids=True), first)
        assert guest is None and b"protocol" in told

    asyncio.run(play())
