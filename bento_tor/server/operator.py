"""Orders of the operator to a running box: a socket in its state folder that only who runs serve can reach.

One order for each connection: a line of words, the first of them a verb; the answer is one JSON object. A verb is
a function that is handed the other words and gives the answer, or raises BentoError.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from bento_tor.errors import BentoError, ConfigError, ConnectError

log = logging.getLogger(__name__)

Answer = Mapping[str, Any]
Verb = Callable[[list[str]], Awaitable[Answer]]

_MAX_LINE_BYTES = 4096
_MAX_ANSWER_BYTES = 1024 * 1024
_LINE_S = 10.0
_ASK_S = 60.0


class _Failure(msgspec.Struct):
    """What went wrong, as it travels."""

    message: str
    hint: str


class _Reply(msgspec.Struct):
    """One of the two."""

    answer: dict[str, Any] | None = None
    error: _Failure | None = None


class Orders:
    """Takes orders, and obeys them by `verbs`."""

    def __init__(self, verbs: Mapping[str, Verb]) -> None:
        self._verbs = verbs
        self._maybe_server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, listener: socket.socket) -> None:
        """Begin, at `listener`."""
        self._maybe_server = await asyncio.start_unix_server(self._receive, sock=listener, limit=_MAX_LINE_BYTES)

    async def close(self) -> None:
        """Take no more orders; the one that ends the box has its answer when this returns."""
        if self._maybe_server is not None:
            self._maybe_server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LINE_S)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = b""
        with suppress(ConnectionError, TimeoutError, ValueError):
            async with asyncio.timeout(_LINE_S):
                line = await reader.readline()
        # Only now: who connects and says nothing does not hold up the end.
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with suppress(ConnectionError, TimeoutError):
            writer.write(msgspec.json.encode(await _obey(self._verbs, line)))
            async with asyncio.timeout(_LINE_S):
                await writer.drain()
        writer.close()
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_LINE_S):
                await writer.wait_closed()


async def _obey(verbs: Mapping[str, Verb], line: bytes) -> _Reply:
    verb, *words = line.decode("utf-8", "replace").split() or [""]
    try:
        if verb not in verbs:
            raise ConfigError(f"a box knows no order {verb[:64]!r}", hint=f"it knows {', '.join(sorted(verbs))}")
        return _Reply(answer=dict(await verbs[verb](words)))
    except BentoError as error:
        return _Reply(error=_Failure(error.message, error.hint))
    except Exception:
        log.exception("an order could not be carried out")
        return _Reply(error=_Failure("the box could not carry out this order", "its log says why"))


def maybe_ask(path: Path, verb: str, *words: str, timeout_s: float = _ASK_S) -> dict[str, Any] | None:
    """Give an order to the box whose socket is at `path`; None where no box runs there.

    Raises ConfigError with the box's words where it refuses, ConnectError where it does not answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as why:
            raise ConnectError(
                f"the box at {path} takes no orders: {why.strerror or why}", hint="who runs serve may give orders"
            ) from why
        reply = _exchange(sock, " ".join((verb, *words)))
    if reply.error is not None:
        raise ConfigError(reply.error.message, hint=reply.error.hint)
    return reply.answer or {}


def _exchange(sock: socket.socket, line: str) -> _Reply:
    try:
        sock.sendall(f"{line}\n".encode())
        told = bytearray()
        while len(told) <= _MAX_ANSWER_BYTES and (part := sock.recv(65536)):
            told += part
        return msgspec.json.decode(told, type=_Reply)
    except (OSError, ValueError, RecursionError) as why:
        raise ConnectError("the box did not answer the order", hint="its log says more") from why
