"""One control socket: commands with deadlines, replies, and raw events for whoever asked for them.

stem frames the messages; its Controller is not used, because its calls wait for ever. One thread reads: a
reply goes to the command that waits for it, an event into the queues of its listeners, and nothing else
happens on that thread. Owns no meaning: authentication is in `connection`, commands in `tor`, events in
`events`.
"""

from __future__ import annotations

import logging
import queue
import socket
import struct
import threading
from dataclasses import dataclass

import stem
import stem.socket

from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import TorError

# A listener that never reads must not fill our memory; tor's burst at a circuit storm is well below.
MAX_WAITING_EVENTS = 20_000
_SEND_TIMEOUT_S = 10

EventQueue = queue.Queue[str | None]


@dataclass(frozen=True)
class Reply:
    """What tor answered: its three-digit code, and the lines (a data line holds newlines)."""

    code: str
    lines: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether tor did it."""
        return self.code.startswith("2")

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


class _Socket(stem.socket.ControlSocket):  # type: ignore[misc] # stem has no types
    """stem's socket, opened with a deadline of ours."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.connect()

    def _make_socket(self) -> socket.socket:
        opened = open_socket(self.endpoint, self.timeout_s)
        # A tor that stopped reading must not hold a sender: the kernel ends the send.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        return opened


def open_socket(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    """A blocking socket connected to `endpoint` within `timeout_s` seconds. Raises OSError."""
    family = socket.AF_UNIX if endpoint.is_unix else socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(timeout_s)
        opened.connect(str(endpoint.path) if endpoint.is_unix else (endpoint.host, endpoint.port))
        opened.settimeout(None)
    except BaseException:
        opened.close()
        raise
    return opened


class Wire:
    """A control socket and the thread that reads it. Made by `open`; close it."""

    def __init__(self, sock: _Socket) -> None:
        self._socket = sock
        self._turn = threading.Lock()
        self._replies: queue.Queue[Reply | None] = queue.Queue()
        self._listeners: list[tuple[frozenset[str], EventQueue]] = []
        self._listeners_lock = threading.Lock()
        self._dead = threading.Event()
        self.failure = ""
        self._reader = threading.Thread(target=self._read, name=f"tor {sock.endpoint}", daemon=True)

    @classmethod
    def open(cls, endpoint: Endpoint, timeout_s: float) -> Wire:
        """Connect, unauthenticated. Raises OSError."""
        _silence_stem()
        wire = cls(_Socket(endpoint, timeout_s))
        wire._reader.start()
        return wire

    @property
    def endpoint(self) -> Endpoint:
        """What this is connected to."""
        return self._socket.endpoint

    @property
    def alive(self) -> bool:
        """Whether tor still holds the connection."""
        return not self._dead.is_set()

    def ask(self, command: str, timeout_s: float) -> Reply:
        """Send `command`, return the reply. Raises TorError when the connection ends or the deadline passes.

        After a missed deadline the connection is closed: a late reply must not answer the next command."""
        verb = command.split(" ", 1)[0].strip("+")  # the rest may hold a key or a cookie: never in an error
        if not self._turn.acquire(timeout=timeout_s):
            raise TorError(f"tor at {self.endpoint} is still busy with another command after {timeout_s:g} s")
        try:
            return self._exchange(command, verb, timeout_s)
        finally:
            self._turn.release()

    def _exchange(self, command: str, verb: str, timeout_s: float) -> Reply:
        if not self.alive:
            raise TorError(f"the control connection to tor at {self.endpoint} is closed")
        try:
            self._socket.send(command)
            reply = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            message = f"tor at {self.endpoint} did not answer {verb} within {timeout_s:g} s"
            raise TorError(message, hint="it may hang: look at its log") from None
        except stem.ControllerError as why:
            self.close()
            raise TorError(f"tor at {self.endpoint} closed the control connection at {verb}") from why
        except BaseException:
            self.close()  # interrupted: the reply that is still to come must not answer the next command
            raise
        if reply is None:
            raise TorError(f"tor at {self.endpoint} closed the control connection at {verb}")
        return reply

    def listen(self, types: frozenset[str]) -> EventQueue:
        """A queue that gets each event of these types, raw; None when the connection ends."""
        events: EventQueue = queue.Queue(MAX_WAITING_EVENTS)
        with self._listeners_lock:
            self._listeners.append((types, events))
        if not self.alive:
            events.put(None)
        return events

    def unlisten(self, events: EventQueue) -> None:
        """Put nothing more into that queue."""
        with self._listeners_lock:
            self._listeners = [one for one in self._listeners if one[1] is not events]

    def listened_types(self) -> frozenset[str]:
        """All types that somebody listens to."""
        with self._listeners_lock:
            return frozenset[str]().union(*(types for types, _ in self._listeners))

    def close(self) -> None:
        """End the connection; a command that waits fails. Safe to call twice, and from any thread."""
        self._dead.set()
        self._socket.close()
        if threading.current_thread() is not self._reader:
            self._reader.join(_SEND_TIMEOUT_S)

    def _read(self) -> None:
        try:
            while not self._dead.is_set():
                code, lines = _unpack(self._socket.recv())
                if code == "650":
                    self._hand_out(lines)
                else:
                    self._replies.put(Reply(code, lines))
        except (stem.ControllerError, OSError, ValueError) as why:
            self.failure = str(why)
        self._dead.set()
        self._replies.put(None)
        with self._listeners_lock:
            for _, events in self._listeners:
                _put(events, None)

    def _hand_out(self, lines: tuple[str, ...]) -> None:
        kind = lines[0].split(" ", 1)[0]
        with self._listeners_lock:
            for types, events in self._listeners:
                if kind in types:
                    _put(events, "\n".join(lines))


def _put(events: EventQueue, item: str | None) -> None:
    """Enqueue; a full queue ends with None, so that its reader learns that it missed something."""
    if events.qsize() >= MAX_WAITING_EVENTS - 1:
        item = None
    if not events.full():
        events.put_nowait(item)


def _unpack(message: object) -> tuple[str, tuple[str, ...]]:
    content: list[tuple[str, str, str]] = message.content()  # type: ignore[attr-defined] # stem has no types
    return content[-1][0], tuple(text for _, _, text in content)


def _silence_stem() -> None:
    """stem logs each message it sends at its own trace level: cookies and onion keys would reach the user's
    log."""
    logger = logging.getLogger("stem")
    if logger.level < logging.WARNING:
        logger.setLevel(logging.WARNING)
