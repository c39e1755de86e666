"""A connection that comes back. Owns which `Wire` is the present one, the Hello on it, and how often another is made.

What was going on over a wire that broke is said again by those whose it was: sessions and uploads. Each works on one
wire until that fails, then asks `come_back` for the next. A box that hung up learns from this that both visits are one
user's; it would learn that from the session token anyhow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from bento_tor.client.retries import Budget, Ledger, Reconnecting, Retries
from bento_tor.client.source import Source
from bento_tor.client.terms import Terms
from bento_tor.client.transport import Broken, Transport
from bento_tor.client.wire import Wire
from bento_tor.errors import BentoError, ConnectError, TorError
from bento_tor.protocol import messages as m

T = TypeVar("T")
OnReconnect = Callable[[Reconnecting], None]

# tor gives up on a SOCKS connection that asks for nothing after 120 s (SocksTimeout).
_UNUSED_MAX_S = 60.0


class Line:
    """The connection to one box, by whatever wires. Safe for several threads."""

    def __init__(
        self,
        transport: Transport,
        terms: Terms,
        *,
        timeout_s: float,
        retries: Retries,
        ledger: Ledger,
        on_reconnect: OnReconnect | None,
    ) -> None:
        """`timeout_s`: for each answer, and for coming back in all."""
        self.terms = terms
        self.timeout_s = timeout_s
        self.on_sent: Callable[[int], None] = lambda count: None  # told of the bytes that go, on whatever wire
        self._transport = transport
        self._retries = retries
        self._budget = Budget(retries, ledger)
        self._on_reconnect = on_reconnect
        self._greeting = threading.Lock()  # one says Hello, the others wait for the Welcome
        self._mending = threading.Lock()  # one comes back, the others wait for the new wire
        self._closed = threading.Event()
        self._maybe_greeted: Wire | None = None
        self._attempt = 0  # since the last Welcome
        self._give_up_at = 0.0
        self._wire: Wire

    def open(self) -> None:
        """Connect. Raises ConnectError or TorError."""
        self._wire = self._new_wire()

    def close(self) -> None:
        """Hang up; nobody comes back after this."""
        self._closed.set()
        self._wire.__exit__()

    @property
    def wire(self) -> Wire:
        """The present one."""
        wire = self._wire
        if not wire.begun and time.monotonic() - wire.opened_at > _UNUSED_MAX_S:
            with self._mending:
                if self._wire is wire:
                    wire.__exit__()
                    self.open()
        return self._wire

    def fly(self, wire: Wire, flight: Sequence[m.Message], maybe_source: Source | None = None) -> None:
        """Send a flight in one write; the first one on a wire has the Hello with it."""
        with self._greeting:
            if self._maybe_greeted is not wire:
                self.terms.greet(wire, flight, maybe_source)
                self._maybe_greeted, self._attempt = wire, 0
                return
        self.terms.check_fit(maybe_source)
        if flight:
            wire.send(*flight)

    def again(self, work: Callable[[Wire, int], T]) -> T:
        """Do `work` on the present wire, and again on the next one for as long as wires break under it.

        It is told how often it was done before. It must do no harm when repeated."""
        done = 0
        while True:
            wire = self.wire
            try:
                return work(wire, done)
            except (ConnectError, TorError) as error:
                self.come_back(wire, error)
                done += 1

    def come_back(self, wire: Wire, error: BentoError) -> Wire:
        """The wire to use after `error` on `wire`. Raises `error` where that did not break the wire, or the way to the
        box was never there; ConnectError where there were too many reconnections, or the time is over."""
        if error is not wire.maybe_error or self._closed.is_set():
            raise error
        with self._mending:
            if wire is not self._wire:
                return self._wire
            if not isinstance(error, Broken) and self._attempt == 0:
                raise error
            wire.__exit__()
            self._wire = self._next_wire(error)
            return self._wire

    def _new_wire(self) -> Wire:
        return Wire(self._transport.open(), timeout_s=self.timeout_s, on_sent=lambda count: self.on_sent(count))

    def _next_wire(self, error: BentoError) -> Wire:
        """Wait, and connect; where our own tor or a box on this machine does not listen, again until it does."""
        if self._attempt == 0:
            self._give_up_at = time.monotonic() + self.timeout_s
        try:
            while True:
                self._attempt += 1
                wait_s = self._retries.wait_s(self._attempt)
                self._check_time(error, wait_s)
                self._check_budget(error)
                if self._on_reconnect is not None:
                    self._on_reconnect(Reconnecting(self._attempt, error.message, wait_s))
                if self._closed.wait(wait_s):
                    raise error
                try:
                    return self._new_wire()
                except (ConnectError, TorError) as why:
                    if isinstance(why, TorError) or not self._transport.builds_circuits:
                        self._budget.give_back()
                    error = why
        except BaseException:
            self._attempt = 0  # who tries again later has all the time again
            raise

    def _check_time(self, error: BentoError, wait_s: float) -> None:
        if time.monotonic() + wait_s > self._give_up_at:
            raise ConnectError(
                f"the box could not be reached again in {self.timeout_s:g} seconds: {error.message}",
                hint="what runs there goes on: attach to its session later, or wait longer with --timeout",
            ) from error

    def _check_budget(self, error: BentoError) -> None:
        if self._budget.take():
            return
        if not self._retries.most:
            raise error
        raise ConnectError(
            f"the connection broke again, after {self._retries.most} reconnections in "
            f"{self._retries.within_s / 60:g} minutes: {error.message}",
            hint="a box that hangs up on purpose makes your tor build circuits, which can find out your guard; what "
            "runs there goes on: if you trust the box, attach to its session later",
        ) from error
