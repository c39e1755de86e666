"""The gate's control connection: the few things that it says to tor, and what it hears of descriptors.

One thread follows the connection, and makes it again when tor has been away. Everything here blocks; the gate calls it
from threads of its own. No text of a function's is ever part of a command: ports and circuit numbers are all there is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bento_tor.controller import consensus
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.isolated import Circuit, close_isolated, isolated_circuits
from bento_tor.controller.tor import Tor
from bento_tor.controller.uploads import EveryUpload
from bento_tor.errors import BentoError, TorError

log = logging.getLogger(__name__)

_POLL_S = 0.5
_RETRY_S = 5.0
_LISTING_S = 60.0


class Control:
    """One tor. `uploaded` and `lost` are called from the thread that follows it: an address' descriptors have reached
    the directories; tor has gone, and every service with it."""

    def __init__(self, endpoint: Endpoint, uploaded: Callable[[str], None], lost: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._uploaded = uploaded
        self._lost = lost
        self._tor: Tor = connect(endpoint)
        self._stop = threading.Event()
        self._listed: tuple[float, tuple[consensus.Listed, ...]] = (-_LISTING_S, ())
        self._thread = threading.Thread(target=self._follow, name="gate-control", daemon=True)

    def start(self) -> None:
        """Begin to follow it."""
        self._thread.start()

    def close(self) -> None:
        """Hang up: what was published by this connection goes down with it."""
        self._stop.set()
        self._tor.close()

    @property
    def socks(self) -> Endpoint:
        """Where this tor takes streams. Raises TorError where it takes none."""
        listed = self._tor.get_info("net/listeners/socks").split()
        if not listed:
            raise TorError(f"the tor at {self._endpoint} has no SOCKS port", hint="give it one: SocksPort auto")
        text = listed[0].strip('"')
        return Endpoint.parse(text)

    def has_services(self) -> bool:
        """Whether it has onion services, of its settings or of somebody's who left them there: then it hides something.
        Raises TorError."""
        return bool(self._tor.get_conf("HiddenServiceDir") or self._tor.get_info("onions/detached").split())

    def publish(self, port: int, target: Path) -> str:
        """An onion service with a key that nobody keeps; gives its address without `.onion`. Raises TorError."""
        reply = self._tor.ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK Port={port:d},unix:{target}")
        return reply.lines[0].removeprefix("ServiceID=")

    def withdraw(self, address: str) -> None:
        """Take down a service of ours."""
        self._tor.msg(f"DEL_ONION {address}")

    def circuits(self, word: str) -> list[Circuit]:
        """Those whose word begins so. Raises TorError."""
        return isolated_circuits(self._tor, word)

    def end_circuits(self, word: str) -> None:
        """Close those. Raises TorError."""
        close_isolated(self._tor, word)

    def relays(self) -> tuple[consensus.Listed, ...]:
        """The consensus' relays, as they were at most a minute ago. Raises TorError."""
        read_at, listed = self._listed
        if time.monotonic() - read_at > _LISTING_S:
            listed = consensus.relays(self._tor)
            self._listed = (time.monotonic(), listed)
        return listed

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._hear()
            except BentoError:
                if self._stop.is_set():
                    return
                log.warning("the gate's tor has gone: api.tor is closed until it is back")
                self._lost()
                self._reconnect()

    def _hear(self) -> None:
        # Of everybody's services on that tor: who asks has no address yet as the first word comes.
        uploads = EveryUpload()
        with self._tor.events("HS_DESC") as events:
            while not self._stop.is_set():
                event = events.maybe_next(_POLL_S)
                if isinstance(event, HsDescEvent):
                    uploads.take(event, time.monotonic())
                for address in uploads.over(time.monotonic()):
                    self._uploaded(address)

    def _reconnect(self) -> None:
        self._tor.close()
        while not self._stop.wait(_RETRY_S):
            try:
                self._tor = connect(self._endpoint)
            except BentoError as why:
                log.info("the gate's tor is not back: %s", why.message)
                continue
            log.warning("the gate's tor is back")
            return
