"""Keeps the box's onion service up, where no setup-relay did: publishes it, and again whenever tor has been away.

Runs as a thread of the keeper, which alone may hold a control connection. The service lives with that connection, so
a keeper that dies takes it down: nothing stays published with nobody behind it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bento_tor.controller import services
from bento_tor.controller.client_auth import Access, load_access
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import Defences, onion_address, publish, withdraw
from bento_tor.controller.services import BOX, Service
from bento_tor.controller.single_hop import SingleHopTor
from bento_tor.controller.tor import Tor
from bento_tor.errors import BentoError, ConfigError, TorError

log = logging.getLogger(__name__)

_PUBLISH_S = 120.0
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0
_POLL_S = services.APART_S


class Publisher:
    """Publishes `seed`'s service until it is stopped, for whom the file `access` lets in: also when that changes.

    `single_hop`: the service does not hide; `maybe_own` is then the tor for it, if that is ours to start. `done` is
    called once: with None after the first success, with the error if there is none."""

    def __init__(
        self,
        control: Endpoint | None,
        seed: bytes,
        port: int,
        target: Endpoint,
        done: Callable[[BentoError | None], None],
        *,
        defences: Defences,
        access: Path,
        single_hop: bool = False,
        maybe_own: SingleHopTor | None = None,
    ) -> None:
        self._control = control
        self._seed = seed
        self._port = port
        self._target = target
        self._done = done
        self._defences = defences
        self._access = access
        self._single_hop = single_hop
        self._maybe_own = maybe_own
        self._warned = False
        self._was_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the service down."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        if self._maybe_own is not None:
            self._maybe_own.stop()

    def _run(self) -> None:
        try:
            self._stay_published(first=True)
        except BentoError as error:
            if not self._was_up:
                self._done(error)
                return
            # tor has gone: that is no reason for the box to end.
            log.warning("the onion service is not published: %s", error.message)
        retry_s = _FIRST_RETRY_S
        while not self._stop.wait(retry_s):
            began = time.monotonic()
            try:
                self._stay_published(first=False)
            except BentoError as error:
                log.warning("the onion service is not published: %s", error.message)
            stood = time.monotonic() - began > _LAST_RETRY_S
            retry_s = _FIRST_RETRY_S if stood else min(2 * retry_s, _LAST_RETRY_S)

    def _stay_published(self, *, first: bool) -> None:
        """Publish, then wait until tor has gone or we are stopped."""
        access = load_access(self._access)
        with connect(self._maybe_own.up() if self._maybe_own is not None else self._control) as tor:
            self._publish(tor, access)
            if first:
                self._was_up = True
                self._done(None)
            else:
                log.warning("tor is back; the onion service is published again")
            while not self._stop.wait(_POLL_S):
                if not tor.alive:
                    raise TorError("tor has gone")
                now = self._access_now(access)
                if now != access:
                    self._publish(tor, now)
                    access = now
            if self._single_hop and self._maybe_own is None:
                services.take_down(tor, self._service, "")

    def _publish(self, tor: Tor, access: Access) -> None:
        """Put it up, or again with other clients: tor takes their keys with a new service only. Who is connected stays
        so."""
        if self._single_hop:
            services.put_up(tor, self._service, self._seed, access, timeout_s=_PUBLISH_S)
            return
        with suppress(TorError):  # it is not up yet
            withdraw(tor, onion_address(self._seed))
        target, keys = str(self._target), tuple(access.keys.values())
        publish(tor, self._seed, self._port, target, timeout_s=_PUBLISH_S, defences=self._defences, clients=keys)

    @property
    def _service(self) -> Service:
        """As a HiddenServiceDir, which is what a single-hop tor wants."""
        pow_rate, streams = self._defences.pow_rate, self._defences.max_streams
        return Service(BOX, self._port, str(self._target), "dir", pow_rate, streams, single_hop=True)

    def _access_now(self, last: Access) -> Access:
        """As it is written now; as it was where that cannot be read: a broken file opens nothing."""
        try:
            return load_access(self._access)
        except ConfigError as error:
            if not self._warned:
                log.warning("the onion service lets in whom it did: %s", error.message)
            self._warned = True
            return last
