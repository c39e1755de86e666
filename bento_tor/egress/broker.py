"""The broker: brings listening sockets and grants together, and holds the rules that all sessions share.

Fails closed: a socket without a grant is not read from, a class that the operator does not offer is refused, an
exit policy that is unknown accepts nothing. Owns no process and no message; see process.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import msgspec

from bento_tor.egress.grants import Caps, Carried, Event, Grant, Rules
from bento_tor.egress.names import Names
from bento_tor.egress.session import Session
from bento_tor.egress.ways import ExitWay, TorWay, Way
from bento_tor.errors import ConfigError
from bento_tor.policy import exit_policy
from bento_tor.policy.destinations import Destinations, maybe_address, parse_operator
from bento_tor.policy.exit_policy import IPAddress

log = logging.getLogger(__name__)

_RESOLVER_THREADS = 64
# Grants whose socket has not come yet. The box sends them; it must not fill our memory.
_MAX_WAITING = 256
# tor says nothing for a while each time it rebuilds its descriptor; what runs goes on so long.
UNKNOWN_GRACE_S = 60.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the operator has set.

    offers         the classes of egress that a function may have
    ceiling        the most of one session
    tor_socks      SOCKS port of the box's own tor: a unix socket's path, or ADDRESS:PORT; empty: none
    documentation  documentation addresses lead somewhere here: in test networks only
    """

    offers: tuple[Literal["exit", "tor"], ...] = ()
    ceiling: Caps = Caps()
    tor_socks: str = ""
    documentation: bool = False

    @property
    def maybe_socks(self) -> str | tuple[str, int] | None:
        """The endpoint to connect to. Raises ConfigError for what is none."""
        if not self.tor_socks or self.tor_socks.startswith("/"):
            return self.tor_socks or None
        host, _, port = self.tor_socks.rpartition(":")
        address = maybe_address(host)
        if address is None or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"no SOCKS port: {self.tor_socks!r}", hint="give a unix socket's path or ADDRESS:PORT")
        return str(address), int(port)


class Broker:
    """All sessions' egress. Belongs to one event loop. `note`: told a session's number and what happened;
    `carried`: told what one has carried, at its end."""

    def __init__(
        self,
        settings: Settings,
        *,
        own_addresses: Callable[[], Iterable[IPAddress]],
        note: Callable[[int, Event], None] = lambda number, event: None,
        carried: Callable[[Carried], None] = lambda message: None,
    ) -> None:
        self._settings = settings
        self._own_addresses = own_addresses
        self._note = note
        self._carried = carried
        self._socks = settings.maybe_socks
        self._pool = ThreadPoolExecutor(max_workers=_RESOLVER_THREADS, thread_name_prefix="names")
        self._stated = Rules(None)
        self._rules = Destinations()
        self._listeners: dict[int, socket.socket] = {}
        self._grants: dict[int, Grant] = {}
        self._sessions: dict[int, Session] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._grace: asyncio.TimerHandle | None = None

    @property
    def rules(self) -> Destinations:
        """What `exit` egress may reach now."""
        return self._rules

    def listen(self, number: int, listener: socket.socket) -> None:
        """The session's listening socket has come; it is ours to close. One number has one, ever."""
        if number in self._listeners or number in self._sessions:
            listener.close()
            return
        self._listeners[number] = listener
        self._maybe_start(number)

    def grant(self, grant: Grant) -> None:
        """The session's grant has come. A second one changes nothing."""
        if grant.number in self._sessions:
            return
        while len(self._grants) >= _MAX_WAITING:
            del self._grants[next(iter(self._grants))]
        self._grants[grant.number] = grant
        self._maybe_start(grant.number)

    def end(self, number: int) -> None:
        """The session is over: close its socket and all its connections."""
        self._grants.pop(number, None)
        if (listener := self._listeners.pop(number, None)) is not None:
            listener.close()
        if (session := self._sessions.pop(number, None)) is not None:
            task = asyncio.create_task(self._close(session))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _close(self, session: Session) -> None:
        await session.close()
        self._carried(session.carried)

    def set_rules(self, stated: Rules) -> None:
        """From now on, for running connections too. What cannot be read accepts nothing."""
        was_known = self._rules.exit_policy is not None
        self._stated = stated
        try:
            self._rules = self._read(stated)
        except ConfigError as why:
            log.error("egress is closed: %s", why.message)
            self._rules = self._read(Rules(None))
        if self._rules.exit_policy is not None:
            self._stop_grace()
            self._judge_again()
        else:
            if was_known and self._grace is None:
                self._grace = asyncio.get_running_loop().call_later(UNKNOWN_GRACE_S, self._judge_again)
            # The grace is for what the relay's policy would say; what the operator has blocked has none.
            self._close_unless(lambda address, port: not self._rules.blocks(address, port))

    def refresh(self) -> None:
        """This machine's addresses may have changed."""
        self.set_rules(self._stated)

    async def close(self) -> None:
        """End every session."""
        self._stop_grace()
        for number in {*self._sessions, *self._listeners}:
            self.end(number)
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _maybe_start(self, number: int) -> None:
        if number not in self._listeners or number not in self._grants:
            return
        grant, listener = self._grants.pop(number), self._listeners.pop(number)
        way = self._maybe_way(grant)
        if way is None:
            # Closed, not kept: a function that connects all the same is refused at once.
            listener.close()
            return
        cut = msgspec.structs.replace(grant, caps=grant.caps.cut(self._settings.ceiling))
        session = Session(cut, listener, way, lambda event: self._note(number, event))
        self._sessions[number] = session
        session.start()

    def _maybe_way(self, grant: Grant) -> Way | None:
        if grant.egress not in self._settings.offers:
            return None
        if grant.egress == "exit":
            return ExitWay(lambda: self._rules, Names(self._pool))
        return TorWay(self._socks, lambda: self._rules) if self._socks is not None else None

    def _read(self, stated: Rules) -> Destinations:
        own = {address for text in stated.own if (address := maybe_address(text)) is not None}
        return Destinations(
            exit_policy=None if stated.exit_policy is None else exit_policy.parse(stated.exit_policy),
            operator=parse_operator(stated.operator),
            own=frozenset({*own, *self._own_addresses()}),
            documentation=self._settings.documentation,
        )

    def _judge_again(self) -> None:
        self._grace = None
        self._close_unless(self._rules.accepts)

    def _close_unless(self, accepts: Callable[[IPAddress, int], bool]) -> None:
        for session in self._sessions.values():
            session.judge_again(accepts)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
