"""What is given up before the box has answered does not stay there."""

from __future__ import annotations

import threading
import time

import pytest

from bento_tor.client import Retries, Stream, connect, parse
from bento_tor.client.memory import ADDRESS, MemoryBox, MemorySession
from bento_tor.errors import ConnectError

WITHIN_S = 20.0
WAITS = parse("waits", "def waits(): pass")


class Deaf:
    """A way to a box whose answers never come."""

    builds_circuits = False

    def __init__(self, inner: MemoryBox) -> None:
        self._inner = inner

    def open(self) -> Stream:
        return DeafStream(self._inner.open())


class DeafStream:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._closed = threading.Event()

    def send(self, data: bytes) -> None:
        self._stream.send(data)

    def recv(self, max_bytes: int) -> bytes:
        self._closed.wait()
        return b""

    def close(self) -> None:
        self._closed.set()
        self._stream.close()


@pytest.mark.parametrize("what", ["run", "upload"])
def test_it_is_taken_back(what: str) -> None:
    begun = threading.Event()

    def waits(api: MemorySession) -> None:
        begun.set()
        api.recv()

    with MemoryBox({"waits": waits}) as there:
        options = {"transport": Deaf(there), "retries": Retries(most=0), "policy_digest": there.policy_digest}
        with connect(ADDRESS, timeout_s=1.0, **options) as box, pytest.raises(ConnectError, match="in time"):
            box.run(WAITS) if what == "run" else box.upload(WAITS)
        if what == "run":
            assert begun.wait(WITHIN_S)  # it had all arrived
        deadline = time.monotonic() + WITHIN_S
        while there.stored or any(not session.ended for session in there.sessions.values()):
            assert time.monotonic() < deadline, "it is still there"
            time.sleep(0.01)


def test_what_the_caller_has_tokens_for_stays() -> None:
    with MemoryBox({}) as there:
        options = {"transport": Deaf(there), "retries": Retries(most=0), "policy_digest": there.policy_digest}
        with connect(ADDRESS, timeout_s=1.0, **options) as box, pytest.raises(ConnectError, match="in time"):
            box.upload(WAITS, invocation=b"i" * 32, shutdown=b"s" * 32)
        assert list(there.stored) == [b"i" * 32]
