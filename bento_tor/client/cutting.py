"""A transport that breaks where a test wants it to: for programs that must survive it."""

from __future__ import annotations

from collections.abc import Iterable

from bento_tor.client.transport import Stream, Transport

NEVER = 2**62


class CutStream:
    """Passes so many bytes up (to the box) and down, then breaks: what is left of a message goes no further."""

    def __init__(self, stream: Stream, up: int, down: int) -> None:
        self.up, self.down = up, down
        self.sent, self.received = 0, 0
        self._stream = stream

    def send(self, data: bytes) -> None:
        part = data[: max(0, self.up - self.sent)]
        self.sent += len(part)
        if part:
            self._stream.send(part)
        if len(part) < len(data):
            self._stream.close()
            raise BrokenPipeError("cut")

    def recv(self, max_bytes: int) -> bytes:
        left = self.down - self.received
        if left <= 0:
            self._stream.close()
            raise ConnectionResetError("cut")
        data = self._stream.recv(min(max_bytes, left))
        self.received += len(data)
        return data

    def close(self) -> None:
        self._stream.close()


class CutTransport:
    """Cuts its streams where `cuts` says, one after the other; those that come after are not cut."""

    builds_circuits = False

    def __init__(self, inner: Transport, cuts: Iterable[tuple[int, int]]) -> None:
        self.streams: list[CutStream] = []
        self._inner = inner
        self._cuts = iter(cuts)

    def open(self) -> Stream:
        up, down = next(self._cuts, (NEVER, NEVER))
        self.streams.append(CutStream(self._inner.open(), up, down))
        return self.streams[-1]
