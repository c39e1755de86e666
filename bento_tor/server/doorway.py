"""Who comes in: how many connections there may be, who they belong to, and who goes where the box is full.

Tor hides who a client is; a tor that is told to (HiddenServiceExportCircuitID haproxy) names the circuit that a
connection came by, in a line before the client's first byte. Connections of one circuit are then one guest, who shares
one quota. Without it each connection is a guest of its own. Owns no message but the refusal at the door.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import Connection, Role
from bento_tor.server.session import Session

# PROXY protocol, version 1, section 2.1: a line has at most 107 characters, its end included.
_MAX_LINE_BYTES = 107
# tor writes the line before anything else; who sits on the other end cannot delay it.
_LINE_S = 10.0
# tor's src/feature/hs: the circuit's number, in the low 32 bits of an address that exists nowhere.
_LINE = re.compile(rb"PROXY TCP6 fc00:dead:beef:4dad::([0-9a-f]{1,4}):([0-9a-f]{1,4}) ::1 \d{1,5} \d{1,5}\r\n")
# A client that has done nothing for so long, and has nothing open, makes room for one that comes.
_IDLE_S = 10.0

_FULL = "this box serves as many clients as it can; try again later"
_NO_CIRCUIT = "this box wants to be told the circuit by its tor, and was not"


class Stay(Protocol):
    """One connection that was let in."""

    @property
    def idle_s(self) -> float:
        """Seconds since it did anything; 0 while it has something open."""

    def abort(self) -> None:
        """Drop it now."""


@dataclass(eq=False)
class Guest:
    """Whose quotas these are: one connection, or all of one circuit."""

    name: str = ""
    stays: list[Stay] = field(default_factory=list)  # the newest last
    stored: set[bytes] = field(default_factory=set)
    started: list[Session] = field(default_factory=list)
    starting: int = 0  # on their way: two connections of one circuit must not both take the last place

    def running(self) -> int:
        """How many of the sessions that it started still run, or are being started."""
        self.started = [session for session in self.started if session.maybe_outcome is None]
        return len(self.started) + self.starting


class Doorway:
    """The door of one box: at most `most` connections. `circuit_ids`: tor names the circuit of each, and one circuit
    has at most `most_of_circuit`."""

    def __init__(self, most: int, *, circuit_ids: bool = False, most_of_circuit: int = 16) -> None:
        self.most = most
        self._circuit_ids = circuit_ids
        self._most_of_circuit = most_of_circuit
        self._inside = 0
        self._waiting = 0
        self._guests: dict[str, Guest] = {}
        self._strangers: dict[Guest, None] = {}

    @property
    def inside_now(self) -> int:
        """How many connections there are."""
        return self._inside

    async def maybe_admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Guest | None:
        """Who it is; None where he is turned away, and has been told."""
        if self._waiting >= self.most:
            writer.close()
            return None
        self._waiting += 1
        try:
            guest = await self._guest(reader)
        finally:
            self._waiting -= 1
        if guest is None:
            _turn_away(writer, m.Code.PROTOCOL, _NO_CIRCUIT)
        elif guest.name and len(guest.stays) >= self._most_of_circuit:
            _turn_away(writer, m.Code.FULL, f"this box takes {self._most_of_circuit} connections of one circuit")
        elif self._inside >= self.most and not self._make_room(guest):
            _turn_away(writer, m.Code.FULL, _FULL)
        else:
            return guest
        return None

    @contextmanager
    def inside(self, guest: Guest, stay: Stay) -> Iterator[None]:
        """As long as its connection stands."""
        self._inside += 1
        guest.stays.append(stay)
        if guest.name:
            self._guests[guest.name] = guest
        else:
            self._strangers[guest] = None
        try:
            yield
        finally:
            if stay in guest.stays:  # else it was put out, and is not counted any more
                self._leave(guest, stay)

    def _leave(self, guest: Guest, stay: Stay) -> None:
        self._inside -= 1
        guest.stays.remove(stay)
        if not guest.stays:
            self._strangers.pop(guest, None)
            # What a circuit has running counts on, though it hung up: else coming back would be a new quota.
            if not guest.running():
                self._guests.pop(guest.name, None)

    def _make_room(self, newcomer: Guest) -> bool:
        """Put somebody out: the newest idle one of whoever has more than the newcomer would; else the one that has been
        idle for longest. False: all of them have something to do, and as few as he."""
        guests = [guest for guest in (*self._guests.values(), *self._strangers) if guest.stays]
        greatest = max(guests, key=lambda guest: len(guest.stays))
        if len(greatest.stays) > len(newcomer.stays) + 1:
            idle = [stay for stay in greatest.stays if stay.idle_s > 0]
            self._put_out(greatest, (idle or greatest.stays)[-1])
            return True
        idle_s, guest, stay = max(
            ((stay.idle_s, guest, stay) for guest in guests for stay in guest.stays), key=lambda found: found[0]
        )
        if idle_s < _IDLE_S:
            return False
        self._put_out(guest, stay)
        return True

    def _put_out(self, guest: Guest, stay: Stay) -> None:
        self._leave(guest, stay)
        stay.abort()

    async def _guest(self, reader: asyncio.StreamReader) -> Guest | None:
        if not self._circuit_ids:
            return Guest()
        name = await _maybe_circuit(reader)
        if name is None:
            return None
        if len(self._guests) > self.most:
            self._guests = {name: guest for name, guest in self._guests.items() if guest.stays or guest.running()}
        return self._guests.setdefault(name, Guest(name))


async def _maybe_circuit(reader: asyncio.StreamReader) -> str | None:
    """The circuit that tor's line names; None where what comes is no such line."""
    line = b""
    with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        async with asyncio.timeout(_LINE_S):
            line = await reader.readuntil(b"\n")
    found = _LINE.fullmatch(line) if len(line) <= _MAX_LINE_BYTES else None
    return found and (found[1] + b":" + found[2]).decode()


def _turn_away(writer: asyncio.StreamWriter, code: m.Code, why: str) -> None:
    with suppress(ConnectionError):
        writer.write(Connection(Role.BOX).send(m.Refused(0, code, why)))
    writer.close()
