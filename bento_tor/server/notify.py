"""Words for the service manager (sd_notify(3)): one datagram each, to the socket that $NOTIFY_SOCKET names.

Where nobody asked for them nothing is sent. Also the watchdog: it is told that the box lives as long as the process
that serves clients answers an order; one whose event loop hangs is started anew.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bento_tor.errors import BentoError
from bento_tor.server import operator

log = logging.getLogger(__name__)

_MICRO_S = 1_000_000


def notify(*lines: str) -> bool:
    """Tell the service manager: `READY=1`, `STOPPING=1`, `STATUS=...`. False: nobody asked, or it does not listen."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    # Of the forms that sd_notify(3) names a vsock is for virtual machines' managers: not ours to serve.
    if not place.startswith(("/", "@")):
        return False
    address = f"\0{place[1:]}" if place.startswith("@") else place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # Sent while it stops, say; a manager that does not read must not hold us up.
        sock.setblocking(False)
        with suppress(OSError):
            return sock.sendto("\n".join(lines).encode(), address) > 0
    return False


def watchdog_s() -> float | None:
    """How often the service manager wants to hear that we live, in seconds; None: never (sd_watchdog_enabled(3))."""
    wanted, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (wanted.isascii() and wanted.isdecimal() and int(wanted)) or whose != str(os.getpid()):
        return None
    return int(wanted) / _MICRO_S


class Watchdog:
    """Says that we live, twice in each `period_s`, as long as `lives` says so. A thread of the keeper."""

    def __init__(self, period_s: float, lives: Callable[[], bool]) -> None:
        self._period_s = period_s
        self._lives = lives
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Say no more."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._lives():
                notify("WATCHDOG=1")
            self._stop.wait(self._period_s / 2)


def answers(orders: Path, *, within_s: float) -> bool:
    """Whether the box behind that socket obeys an order that changes nothing."""
    try:
        return operator.maybe_ask(orders, "state", timeout_s=within_s) is not None
    except BentoError as error:
        log.warning("the box does not answer: %s", error.message)
        return False
