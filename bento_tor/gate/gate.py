"""The gate itself: what a session asks for, judged, done, and answered; and undone when the session ends.

Fails closed: a session that the keeper has not shown or the box has not allowed gets nothing, a routine that is not in
the operator's policy is refused whatever the box says, and where tor has gone nothing is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bento_tor.egress.grants import Caps
from bento_tor.egress.host import own_addresses
from bento_tor.egress.socks5 import Reply
from bento_tor.egress.ways import Denied, TorWay
from bento_tor.errors import BentoError, Refused
from bento_tor.gate.carrying import say
from bento_tor.gate.control import Control
from bento_tor.gate.holding import CIRCUITS_MAX, SERVICES_MAX, Held, Holding
from bento_tor.gate.quota import Hourly
from bento_tor.gate.service import Service
from bento_tor.gate.words import MAX_FACTS_BYTES, ROUTINES, Allow, Ask, Declined, Told, Word
from bento_tor.policy.destinations import Destinations, is_named
from bento_tor.sandbox.frames import TorVerb

log = logging.getLogger(__name__)
T = TypeVar("T")

# Of the whole box. What one session may is in holding.py.
_CIRCUITS_PER_HOUR, _SERVICES_PER_HOUR = 240, 60
_SERVICES_MAX = 32
_RELAYS_A_PAGE = 400
_NAME_BYTES = 8  # of a service's socket
_THREADS = 4
_ENDING_S = 5.0
# A descriptor that no directory takes in that time is as good as refused.
_UPLOAD_S = 180.0
_TOR_WAITS = "this box's tor does not answer now"


class Settings(msgspec.Struct, frozen=True):
    """What the operator has set.

    control   the control port of the box's own tor
    routines  those that the policy offers
    folder    for the sockets of onion services, as this process sees it
    shown     the same folder as tor sees it
    tag       begins the words of this box's circuits, so that those of one that was killed are found again
    hides     whether the box's place is a secret: then nobody gets circuits at will
    ceiling   the most of one session's streams
    """

    control: str
    routines: tuple[str, ...]
    folder: str
    shown: str
    tag: str
    hides: bool
    ceiling: Caps = Caps()


class Declining(Refused):
    """The answer is no. `word` is what the function's exception is made of."""

    def __init__(self, word: Word, sentence: str) -> None:
        super().__init__(sentence)
        self.word: Word = word


class Gate:
    """All sessions' part in tor. Belongs to one event loop; `control` is called from threads."""

    def __init__(self, settings: Settings, control: Control, answer: Callable[[Told | Declined], None]) -> None:
        self._settings = settings
        self._control = control
        self._answer = answer
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="gate")
        socks = control.socks
        self._socks: str | tuple[str, int] = str(socks.path) if socks.path is not None else (socks.host, socks.port)
        self._doors: dict[int, socket.socket] = {}
        self._holdings: dict[int, Holding] = {}
        self._made_circuits, self._made_services = Hourly(_CIRCUITS_PER_HOUR), Hourly(_SERVICES_PER_HOUR)
        self._services: dict[str, Service] = {}
        # A descriptor may be taken before we have tor's answer that there is such a service.
        self._early: deque[str] = deque(maxlen=256)
        self._tasks: set[asyncio.Task[None]] = set()
        self._doing: dict[TorVerb, Callable[[Holding, Ask], Awaitable[dict[str, Any]]]] = {
            TorVerb.CONNECT: self._connect,
            TorVerb.NEW_CIRCUIT: self._new_circuit,
            TorVerb.CIRCUITS: self._circuits,
            TorVerb.CLOSE_CIRCUIT: self._close_circuit,
            TorVerb.PUBLISH: self._publish,
            TorVerb.WITHDRAW: self._withdraw,
            TorVerb.NETWORK: self._network,
        }

    async def open(self) -> None:
        """End what a gate of this box's that was killed has left in tor."""
        await self._call(self._control.end_circuits, f"{self._settings.tag}-")

    # --- what keeper and box say ------------------------------------------------------------------------------

    def listen(self, number: int, door: socket.socket) -> None:
        """Session `number` runs behind this door, which is ours to close. One number has one, ever."""
        if number in self._doors or number in self._holdings:
            door.close()
            return
        self._doors[number] = door

    def allow(self, allowed: Allow) -> None:
        """What that session may. A second word changes nothing; without a routine its door is closed."""
        door = self._doors.pop(allowed.number, None)
        if door is None:
            return
        routines = tuple(name for name in allowed.routines if name in self._settings.routines)
        if not routines:
            door.close()
            return
        prefix = f"{self._settings.tag}-{secrets.token_hex(12)}"
        holding = Holding(msgspec.structs.replace(allowed, routines=routines), prefix)
        holding.open(door, self._settings.ceiling)
        self._holdings[allowed.number] = holding

    def ask(self, ask: Ask) -> None:
        """Do it, and answer."""
        self._begin(self._do(ask))

    def end(self, number: int) -> None:
        """The session is over: nothing of it stays in tor."""
        if (door := self._doors.pop(number, None)) is not None:
            door.close()
        if (holding := self._holdings.pop(number, None)) is not None:
            self._begin(self._end(holding))

    async def close(self) -> None:
        """End every session."""
        for number in {*self._doors, *self._holdings}:
            self.end(number)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_ENDING_S)
        self._control.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- what tor says ----------------------------------------------------------------------------------------

    def uploaded(self, address: str) -> None:
        """The directories have that service's descriptors."""
        if address in self._services:
            self._services[address].uploaded.set()
        else:
            self._early.append(address)

    def lost(self) -> None:
        """Tor has gone, and with it every service."""
        for holding in self._holdings.values():
            services, holding.services = list(holding.services.values()), {}
            for service in services:
                self._begin(self._close_service(service))

    # --- the verbs --------------------------------------------------------------------------------------------

    async def _do(self, ask: Ask) -> None:
        try:
            holding = self._holdings.get(ask.number)
            if holding is None:
                raise Declining("policy", "this session has no way to tor")
            routine = ROUTINES[ask.verb]
            if routine not in holding.allowed.routines:
                raise Declining("policy", f"the function's manifest does not name {routine!r} under 'tor'")
            facts = await self._doing[ask.verb](holding, ask)
        except Declining as why:
            self._answer(Declined(ask.request, why.word, why.message))
        except (BentoError, OSError):
            # Not a line in the log, which has times: that tor has gone is said there once, by control.py.
            self._answer(Declined(ask.request, "unavailable", _TOR_WAITS))
        else:
            text = json.dumps(facts, separators=(",", ":")).encode()
            # One packet: what is longer would end the line to the box, and with it everybody's way to tor.
            too_long = Declined(ask.request, "unavailable", "the answer is too long")
            self._answer(Told(ask.request, text) if len(text) <= MAX_FACTS_BYTES else too_long)

    async def _connect(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        if not is_named(holding.allowed.hosts, ask.host):
            raise Declining("policy", "the function's manifest does not name this host under 'hosts'")
        if not ask.port:
            raise Declining("policy", "a port is from 1 to 65535")
        held = await self._held(holding, ask.handle)

        async def errand(conn: socket.socket) -> socket.socket | None:
            if held not in holding.circuits.values():
                # It has been closed since: what it was closed for must not come back by a ticket that was kept.
                await say(conn, Reply.POLICY)
                return None
            try:
                return (await held.way.open(ask.host, ask.port)).sock
            except Denied as why:
                await say(conn, why.reply)
                return None

        return {"ticket": holding.ticket(errand, once=True)}

    async def _new_circuit(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        await self._refuse_where_hidden()
        self._count_circuit(holding)
        return {"circuit": self._hold(holding)}

    async def _circuits(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        found = await self._call(self._control.circuits, holding.prefix)
        known: list[dict[str, Any]] = []
        for number, held in holding.circuits.items():
            built = [each for each in found if each.word == held.word]
            known += [{"circuit": number, "status": each.status, "hops": each.hops} for each in built]
            known += [] if built else [{"circuit": number, "status": "UNUSED", "hops": 0}]
        return {"circuits": known}

    async def _close_circuit(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        held = holding.circuits.pop(ask.handle, None)
        if held is None:
            raise Declining("missing", f"this session has no circuit {ask.handle}")
        await self._call(self._control.end_circuits, held.word)
        return {}

    async def _publish(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        now_s = time.monotonic()
        if not ask.port:
            raise Declining("policy", "a port is from 1 to 65535")
        if len(holding.services) >= SERVICES_MAX or len(self._services) >= _SERVICES_MAX:
            raise Declining("full", f"a session has at most {SERVICES_MAX} onion services, a box {_SERVICES_MAX}")
        if not (holding.made_services.has_room(now_s) and self._made_services.has_room(now_s)):
            raise Declining("full", "no more onion services in this hour")
        holding.made_services.take(now_s)
        self._made_services.take(now_s)
        # Everybody of this machine may pass through the folder to a socket that he can name; visitors have an address
        # that cannot be guessed, and so is this.
        name, number = secrets.token_hex(_NAME_BYTES), holding.number()
        service = Service(Path(self._settings.folder) / name)
        holding.services[number] = service
        try:
            address = await self._call(self._control.publish, ask.port, Path(self._settings.shown) / name)
        except BaseException:
            holding.services.pop(number, None)
            await service.close()
            raise
        service.address = address
        if holding.services.get(number) is not service or ask.number not in self._holdings:
            # The session has ended, or tor gone, while it was being made.
            await self._close_service(service)
            raise Declining("unavailable", _TOR_WAITS)
        self._services[address] = service
        if address in self._early:
            service.uploaded.set()
        service.ticket = holding.ticket(service.fetch, once=False)
        return {
            "service": number,
            "address": f"{address}.onion",
            "ticket": service.ticket,
            "news": holding.ticket(lambda conn: _tell_uploaded(service, conn), once=True),
        }

    async def _withdraw(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        service = holding.services.pop(ask.handle, None)
        if service is None:
            raise Declining("missing", f"this session has no onion service {ask.handle}")
        holding.void(service.ticket)
        await self._close_service(service)
        return {}

    async def _network(self, holding: Holding, ask: Ask) -> dict[str, Any]:
        listed = await self._call(self._control.relays)
        page = listed[ask.handle : ask.handle + _RELAYS_A_PAGE]
        told = [[each.nickname, each.fingerprint, " ".join(each.flags), each.bandwidth] for each in page]
        return {"total": len(listed), "relays": told}

    # --- what is held -----------------------------------------------------------------------------------------

    async def _held(self, holding: Holding, number: int) -> Held:
        """The circuit of that number; 0: the session's first, made when it is first wanted."""
        if number == 0:
            if holding.first and holding.first not in holding.circuits:
                await self._refuse_where_hidden()
            number = holding.first if holding.first in holding.circuits else self._make_first(holding)
        held = holding.circuits.get(number)
        if held is None:
            raise Declining("missing", f"this session has no circuit {number}")
        return held

    def _make_first(self, holding: Holding) -> int:
        """Once for each session; again, after it was closed, under the rules of `new_circuit`."""
        if holding.first:
            self._count_circuit(holding)
        holding.first = self._hold(holding)
        return holding.first

    async def _refuse_where_hidden(self) -> None:
        """Circuits at will, one of them some day through a relay of the asker's: so a hidden box's guard is found.

        Asked each time: a service may have come since this gate began."""
        if self._settings.hides or await self._call(self._control.has_services):
            raise Declining("policy", "this box hides where it is, and gives no circuits at will")

    def _count_circuit(self, holding: Holding) -> None:
        now_s = time.monotonic()
        if len(holding.circuits) >= CIRCUITS_MAX:
            raise Declining("full", f"a session has at most {CIRCUITS_MAX} circuits: close one")
        if not (holding.made_circuits.has_room(now_s) and self._made_circuits.has_room(now_s)):
            raise Declining("full", "no more circuits in this hour")
        holding.made_circuits.take(now_s)
        self._made_circuits.take(now_s)

    def _hold(self, holding: Holding) -> int:
        number = holding.number()
        word = f"{holding.prefix}-{number}."
        way = TorWay(self._socks, lambda: Destinations(own=own_addresses()), word=word)
        holding.circuits[number], holding.made_any = Held(word, way), True
        return number

    async def _end(self, holding: Holding) -> None:
        await holding.close_door()
        try:
            # One that cannot be taken down must not leave the others up, nor the circuits.
            closing = [self._close_service(service) for service in holding.services.values()]
            for failed in [each for each in await asyncio.gather(*closing, return_exceptions=True) if each]:
                log.warning("the gate could not take down an onion service: %s", failed)
        finally:
            if holding.made_any:
                await self._call(self._control.end_circuits, f"{holding.prefix}-")

    async def _close_service(self, service: Service) -> None:
        self._services.pop(service.address, None)
        await service.close()
        if service.address:
            await self._call(self._control.withdraw, service.address)

    async def _call(self, work: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    def _begin(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (why := task.exception()) is not None:
            log.warning("the gate could not finish something: %s", why)


async def _tell_uploaded(service: Service, conn: socket.socket) -> None:
    try:
        async with asyncio.timeout(_UPLOAD_S):
            await service.uploaded.wait()
    except TimeoutError:
        await say(conn, Reply.TIMEOUT)
    else:
        await say(conn, Reply.OK)
