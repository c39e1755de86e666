"""What one session has in tor: its circuits' words, its services, its tickets. A session cannot name anything else.

Numbers are the session's own, counted from 1: those of another session, or tor's, mean nothing here.
"""

from __future__ import annotations

import itertools
import secrets
import socket
from dataclasses import dataclass, field

from bento_tor.egress.grants import Caps
from bento_tor.egress.ways import TorWay
from bento_tor.gate.carrying import Carrier, Errand
from bento_tor.gate.quota import Hourly
from bento_tor.gate.service import Service
from bento_tor.gate.words import TICKET_BYTES, Allow

# Of one session, at once and in an hour.
CIRCUITS_MAX, SERVICES_MAX = 8, 4
CIRCUITS_PER_HOUR, SERVICES_PER_HOUR = 30, 12
# Tickets that nobody has used yet: the oldest goes.
_TICKETS_MAX = 64


@dataclass(frozen=True, slots=True)
class Held:
    """A circuit: the word that its streams say to tor, and the way by which they go."""

    word: str
    way: TorWay


@dataclass
class Holding:
    """One session's. `prefix` begins every word of it, and of nobody else."""

    allowed: Allow
    prefix: str
    first: int = 0  # the number of the circuit that `connect` uses if none is named
    made_any: bool = False  # whether tor may have circuits of it, closed ones included
    circuits: dict[int, Held] = field(default_factory=dict)
    services: dict[int, Service] = field(default_factory=dict)
    made_circuits: Hourly = field(default_factory=lambda: Hourly(CIRCUITS_PER_HOUR))
    made_services: Hourly = field(default_factory=lambda: Hourly(SERVICES_PER_HOUR))

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._tickets: dict[bytes, tuple[Errand, bool]] = {}
        self._maybe_carrier: Carrier | None = None

    def open(self, door: socket.socket, caps: Caps) -> None:
        """Serve its door."""
        self._maybe_carrier = Carrier(door, caps, self.maybe_errand)
        self._maybe_carrier.start()

    async def close_door(self) -> None:
        """Hang up on all its streams."""
        if self._maybe_carrier is not None:
            await self._maybe_carrier.close()

    def number(self) -> int:
        """A fresh one, for a circuit or a service."""
        return next(self._numbers)

    def ticket(self, errand: Errand, *, once: bool) -> str:
        """A ticket for it, as text. `once`: it is good for one connection."""
        ticket = secrets.token_bytes(TICKET_BYTES)
        while len(self._tickets) >= _TICKETS_MAX:
            unused = next((each for each, (_, single) in self._tickets.items() if single), None)
            self._tickets.pop(unused if unused is not None else next(iter(self._tickets)))
        self._tickets[ticket] = (errand, once)
        return ticket.hex()

    def maybe_errand(self, ticket: bytes) -> Errand | None:
        """What it is good for."""
        errand, once = self._tickets.get(ticket, (None, False))
        if once:
            del self._tickets[ticket]
        return errand

    def void(self, ticket: str) -> None:
        """It is good for nothing any more."""
        self._tickets.pop(bytes.fromhex(ticket), None)
