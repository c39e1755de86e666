"""`Tor`: an authenticated control connection. Every call has a deadline; every failure is a TorError.

Options are to be set only on a tor that is ours to change; this file does not know whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty
from types import TracebackType

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import Event, parse_event
from bento_tor.controller.wire import EventQueue, Reply, Wire
from bento_tor.errors import LocalProtocolError, TorError

# A healthy tor answers in milliseconds, a busy relay in tens of them.
CALL_TIMEOUT_S = 10.0


class Events:
    """Events in the order they came. Made by `Tor.events`."""

    def __init__(self, waiting: EventQueue) -> None:
        self._waiting = waiting

    def maybe_next(self, timeout_s: float) -> Event | None:
        """The next event; None where none came in time. Raises TorError when the connection is over."""
        try:
            text = self._waiting.get(timeout=max(timeout_s, 0.001))
        except Empty:
            return None
        if text is None:
            raise TorError("tor closed the control connection, or sent more events than were read")
        return parse_event(text)

    def until(self, deadline: float) -> Iterator[Event]:
        """Each event until time.monotonic() passes `deadline`. Raises TorError as `maybe_next`."""
        while (left_s := deadline - time.monotonic()) > 0:
            event = self.maybe_next(left_s)
            if event is not None:
                yield event


class Tor:
    """A running tor that obeys us. Made by `connection.connect`; close it (it is a context manager)."""

    def __init__(self, wire: Wire, version: str) -> None:
        self._wire = wire
        self.version = version

    def __enter__(self) -> Tor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> Endpoint:
        """Its control port."""
        return self._wire.endpoint

    @property
    def alive(self) -> bool:
        """Whether the connection still stands."""
        return self._wire.alive

    def close(self) -> None:
        """End the connection; what tor bound to it (ADD_ONION without Detach) goes too."""
        self._wire.close()

    def msg(self, command: str, *, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Send one command, return tor's reply whatever it says. A first line ending in a newline takes data
        lines.

        Raises TorError when tor is gone or silent for `timeout_s` seconds."""
        return self._wire.ask(command, timeout_s)

    def ask(self, command: str, *, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """The same for a single-line command that must succeed: TorError, in tor's words, where it does
        not."""
        reply = self.msg(_one_line(command), timeout_s=timeout_s)
        if not reply.ok:
            verb = command.split(" ", 1)[0]  # the rest may hold a key
            raise TorError(f"tor refused {verb}: {reply.lines[-1]} ({reply.code})")
        return reply

    def get_info(self, key: str, *, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """The value of one GETINFO key, which may have many lines. Raises TorError."""
        reply = self.ask(f"GETINFO {key}", timeout_s=timeout_s)
        value = reply.lines[0].removeprefix(f"{key}=")
        return value.removeprefix("\n")

    def get_conf(self, key: str, *, timeout_s: float = CALL_TIMEOUT_S) -> list[str]:
        """The values of one option, in order; none where it is unset. Raises TorError."""
        lines = self.ask(f"GETCONF {key}", timeout_s=timeout_s).lines
        pairs = [line.partition("=") for line in lines]
        return [value for _, equals, value in pairs if equals]

    def set_conf(
        self,
        lines: Sequence[tuple[str, str | None]],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        reset: bool = False,
    ) -> None:
        """Set options, all at once and in that order; a key may come more than once. None: to tor's null
        value.

        With `reset` a None means tor's default (RESETCONF). Raises TorError where tor refuses; nothing is set
        then."""
        verb = "RESETCONF" if reset else "SETCONF"
        words = [key if value is None else f"{key}={_quoted(value)}" for key, value in lines]
        self.ask(" ".join([verb, *words]), timeout_s=timeout_s)

    @contextmanager
    def events(self, *types: str) -> Iterator[Events]:
        """Listen to these event types while the block runs; it hears what happens from its first line on."""
        waiting = self._wire.listen(frozenset(types))
        try:
            self._set_events()
            yield Events(waiting)
        finally:
            self._wire.unlisten(waiting)
            if self.alive:
                self._set_events()

    def _set_events(self) -> None:
        self.ask(" ".join(["SETEVENTS", *sorted(self._wire.listened_types())]))


def _one_line(command: str) -> str:
    # A newline in an option's value would be a second command of the attacker's choice.
    if "\n" in command or "\r" in command or "\0" in command:
        raise LocalProtocolError("a control command holds a line break")
    return command


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
