"""What the keeper sees and the box cannot: tor, and the sandboxes that wait ready. Told to the box, for its metrics.

One way: the box, which strangers' bytes reach, says nothing on this line, so it learns of tor what is said here and
can ask nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import msgspec

from bento_tor.controller.condition import Condition, read_condition
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.tor import Tor
from bento_tor.errors import TorError
from bento_tor.server import scrape
from bento_tor.server.complaints import Complaint, Complaints

log = logging.getLogger(__name__)

# How often is looked.
LOOK_S = 5.0
_MAX_PACKET_BYTES = 64 * 1024


class Sighting(msgspec.Struct, frozen=True):
    """What was seen. `maybe_tor`: of the tor that has the onion service, where it can be reached; else `why` not
    (empty: this box needs none). `ready`: sandboxes that wait for code, of at most `pool`."""

    maybe_tor: Condition | None = None
    why: str = ""
    ready: int = 0
    pool: int = 0
    complaints: tuple[Complaint, ...] = ()


@dataclass(frozen=True)
class Seeing:
    """Made before the box is forked: the line's two ends, where metrics are read, and this process's complaints."""

    keeper: socket.socket
    box: socket.socket
    maybe_metrics: socket.socket | None
    complaints: Complaints

    def leave_to_box(self) -> None:
        """In the keeper, after the fork."""
        self.box.close()
        if self.maybe_metrics is not None:
            self.maybe_metrics.close()


@contextmanager
def open_seeing(metrics: str) -> Iterator[Seeing]:
    """Note complaints, make the line, listen at `metrics` (empty: nowhere); in the keeper, before the fork. Raises
    ConfigError."""
    with ExitStack() as stack:
        maybe_listener = None
        if metrics:
            place = scrape.check_place(metrics)
            maybe_listener = stack.enter_context(scrape.listen(place))
            if place.path is not None:
                stack.callback(place.path.unlink, missing_ok=True)
        complaints = Complaints()
        complaints.attach()
        stack.callback(complaints.detach)
        keeper, box = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        yield Seeing(stack.enter_context(keeper), stack.enter_context(box), maybe_listener, complaints)


class Lookout:
    """Looks now and then, and tells. A thread of the keeper.

    `onion`: whose tor is to be seen and the address there; None: no tor. `ready`: counts sandboxes."""

    def __init__(
        self,
        sock: socket.socket,
        onion: tuple[Endpoint | None, str] | None,
        ready: Callable[[], tuple[int, int]],
        complaints: Complaints,
    ) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._onion = onion
        self._ready = ready
        self._complaints = complaints
        self._maybe_tor: Tor | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._sock.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            maybe_condition, why = self._look()
            seen = Sighting(maybe_condition, why, *self._ready(), self._complaints.last)
            with suppress(OSError):  # a box that does not read, or has gone
                self._sock.send(msgspec.msgpack.encode(seen))
            self._stop.wait(LOOK_S)
        self._hang_up()

    def _look(self) -> tuple[Condition | None, str]:
        if self._onion is None:
            return None, ""
        endpoint, address = self._onion
        try:
            if self._maybe_tor is None or not self._maybe_tor.alive:
                self._hang_up()
                self._maybe_tor = connect(endpoint)
            return read_condition(self._maybe_tor, address), ""
        except TorError as error:
            self._hang_up()
            return None, error.message

    def _hang_up(self) -> None:
        if self._maybe_tor is not None:
            self._maybe_tor.close()
            self._maybe_tor = None


class Sight:
    """The box's end: the last that was told. For asyncio."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.last = Sighting()
        self._open = False

    def open(self) -> None:
        """Start listening, in the running event loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)
        self._open = True

    def close(self) -> None:
        """Stop."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def _receive(self) -> None:
        try:
            packet = self._sock.recv(_MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            self.last = msgspec.msgpack.decode(packet, type=Sighting)
        else:  # the keeper has gone, and we go
            self.close()
