"""One real fetch through an onion service: the proof that a network works. The service lives as long as the
proof."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import mint_seed, publish, withdraw
from bento_tor.controller.streams import open_stream
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConnectError

_PORT = 80
_ANSWER_BYTES = 32
# While the network is young a circuit may hang: rather a fresh one than a long wait.
_TRY_TIMEOUT_S = 10.0
_ACCEPT_POLL_S = 0.2

Report = Callable[[str], None]


def fetch_through_onion(
    host: Tor, socks: Endpoint, path: Path, *, timeout_s: float, report: Report | None = None
) -> None:
    """Publish a service on `host`, fetch from it through `socks`, take it down. `path`: for its unix socket.

    Raises TorTimeout where it cannot be published, ConnectError where nothing comes back in time."""
    deadline = time.monotonic() + timeout_s
    answer = secrets.token_bytes(_ANSWER_BYTES)
    with _responder(path, answer):
        address = publish(host, mint_seed(), _PORT, f"unix:{path}", timeout_s=timeout_s, report=report)
        try:
            if report is not None:
                report(f"fetch from {address}")
            _fetch(socks, address, answer, deadline)
        finally:
            if host.alive:
                withdraw(host, address)


def _fetch(socks: Endpoint, address: str, answer: bytes, deadline: float) -> None:
    while True:
        left_s = max(deadline - time.monotonic(), 0.1)
        stream = open_stream(socks, address, _PORT, timeout_s=left_s, try_timeout_s=_TRY_TIMEOUT_S)
        with stream:
            got = _read(stream)
        if got == answer:
            return
        if time.monotonic() > deadline:
            raise ConnectError("the onion service of the test answered, but not with what it was given")


def _read(stream: socket.socket) -> bytes:
    got = b""
    try:
        while len(got) < _ANSWER_BYTES and (data := stream.recv(_ANSWER_BYTES)):
            got += data
    except OSError:
        return got  # what came is not the answer: the caller tries again
    return got


@contextmanager
def _responder(path: Path, answer: bytes) -> Iterator[None]:
    """Answer every connection to the unix socket `path` while the block runs."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(_ACCEPT_POLL_S)
        thread = threading.Thread(target=_answer_all, args=(listener, answer, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)


def _answer_all(listener: socket.socket, answer: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            stream = listener.accept()[0]
        except TimeoutError:
            continue
        with stream, contextlib.suppress(OSError):  # a try that was given up has hung up
            stream.sendall(answer)
