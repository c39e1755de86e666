"""Keeps the box's onion service up, where no setup-relay did: publishes it, and again whenever tor has been away.

Runs as a thread of the keeper, which alone may hold a control connection. The service lives with that connection, so
a keeper that dies takes it down: nothing stays published with nobody behind it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import publish
from bento_tor.errors import BentoError, TorError

log = logging.getLogger(__name__)

_PUBLISH_S = 120.0
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0
_POLL_S = 0.5


class Publisher:
    """Publishes `seed`'s service until it is stopped.

    `done` is called once: with None after the first success, with the error if there is none."""

    def __init__(
        self,
        control: Endpoint | None,
        seed: bytes,
        port: int,
        target: Endpoint,
        done: Callable[[BentoError | None], None],
    ) -> None:
        self._control = control
        self._seed = seed
        self._port = port
        self._target = target
        self._done = done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the service down."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        try:
            self._stay_published(first=True)
        except BentoError as error:
            self._done(error)
            return
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
        with connect(self._control) as tor:
            publish(tor, self._seed, self._port, self._target_text, timeout_s=_PUBLISH_S)
            if first:
                self._done(None)
            else:
                log.warning("tor is back; the onion service is published again")
            while not self._stop.wait(_POLL_S):
                if not tor.alive:
                    raise TorError("tor has gone")

    @property
    def _target_text(self) -> str:
        return str(self._target)
