"""One session's talk with its blobs: requests of a function in, answers out; a blob passes piece by piece.

Whatever a function asks is hostile: what is out of order is told to the caller, who ends it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bento_tor.sandbox import frames
from bento_tor.server.blobs import PIECE_BYTES, Blobs, Declined, Head

OnDisk = Callable[..., Awaitable[Any]]


class OutOfOrder(Exception):
    """No driver says this now."""


class Keeping:
    """Answers one session. `on_disk` runs a blocking call where the database lives; `expiring` hears that the function
    has a new end."""

    def __init__(self, blobs: Blobs, on_disk: OnDisk, expiring: Callable[[], None] = lambda: None) -> None:
        self._blobs = blobs
        self._on_disk = on_disk
        self._expiring = expiring
        self._maybe_put: _Put | None = None
        self._skip = 0

    async def answer(self, request: frames.StoreRequest | frames.StoreData) -> AsyncIterator[bytes]:
        """The frames that answer. Raises OutOfOrder."""
        try:
            async for frame in self._answer(request):
                yield frame
        except Declined as why:
            # What is still to come of a blob that failed is on its way already.
            self._skip = self._maybe_put.left if self._maybe_put is not None else 0
            await self.stop()
            yield frames.encode_store_refusal(why.word, why.message)

    async def stop(self) -> None:
        """The session is over, or a put failed: forget what came of it."""
        if self._maybe_put is not None:
            put, self._maybe_put = self._maybe_put, None
            await self._on_disk(self._blobs.abandon, put.pieces)

    async def _answer(self, request: frames.StoreRequest | frames.StoreData) -> AsyncIterator[bytes]:
        if isinstance(request, frames.StoreData):
            if self._maybe_put is None:
                self._skip -= len(request.data)
                if self._skip < 0:
                    raise OutOfOrder("data for no blob")
                return
            async for frame in self._take(self._maybe_put, request.data):
                yield frame
            return
        if self._maybe_put is not None or self._skip:
            raise OutOfOrder("a request in the middle of a blob")
        match request.verb:
            case frames.Verb.GET:
                head: Head = await self._on_disk(self._blobs.head, request.name)
                yield frames.encode_store_reply({"version": head.version, "bytes": head.size})
                for number in range(-(-head.size // PIECE_BYTES)):
                    yield frames.encode_store_bytes(await self._on_disk(self._blobs.read, head, number))
            case frames.Verb.PUT:
                pieces = await self._on_disk(self._blobs.begin, request.name, request.length, request.expect)
                self._maybe_put = _Put(request, pieces)
                yield frames.encode_store_reply({})
                async for frame in self._take(self._maybe_put, b""):
                    yield frame
            case frames.Verb.DELETE:
                await self._on_disk(self._blobs.delete, request.name, request.expect)
                yield frames.encode_store_reply({})
            case frames.Verb.EXPIRE:
                await self._on_disk(self._blobs.expire, request.length)
                self._expiring()
                yield frames.encode_store_reply({})
            case frames.Verb.LIST:
                heads: list[Head] = await self._on_disk(self._blobs.heads)
                facts = {head.name: {"version": head.version, "bytes": head.size} for head in heads}
                yield frames.encode_store_reply({"blobs": facts})

    async def _take(self, put: _Put, data: bytes) -> AsyncIterator[bytes]:
        """The next bytes of a blob; the answer when they are all here."""
        put.held += data
        put.left -= len(data)
        if put.left < 0:
            raise OutOfOrder("more data than was announced")
        while len(put.held) >= PIECE_BYTES or (put.held and not put.left):
            piece = bytes(put.held[:PIECE_BYTES])
            del put.held[:PIECE_BYTES]
            await self._on_disk(self._blobs.write, put.pieces, put.number, piece)
            put.number += 1
        if not put.left:
            request = put.request
            version = await self._on_disk(self._blobs.finish, request.name, put.pieces, request.length, request.expect)
            self._maybe_put = None
            yield frames.encode_store_reply({"version": version})


class _Put:
    """A blob on its way in."""

    def __init__(self, request: frames.StoreRequest, pieces: bytes) -> None:
        self.request = request
        self.pieces = pieces
        self.left = request.length
        self.held = bytearray()
        self.number = 0
