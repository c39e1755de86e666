"""Functions on their way in: the uploads of one connection, and what is left of those whose connection broke.

Owns the bytes until they are whole; the store takes them from there. Nothing of an upload touches the disk before its
digest is right.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from bento_tor.errors import ConfigError
from bento_tor.policy import document
from bento_tor.policy import manifest as manifests
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m
from bento_tor.server.store import Saved
from bento_tor.server.tokens import public_id

# Parts of uploads whose connection broke: of all clients together, and for how long. Above the bytes the oldest goes,
# so that nobody can fill the box's memory by hanging up.
_PARTS_MAX_BYTES = 16 * 1024 * 1024
# Less than this is not kept: a million parts of a byte each would be within the bound, and take our memory and time.
_PART_LEAST_BYTES = 16 * 1024
_PARTS_KEPT_S = 600.0

# Alike for every token that does not open anything, whatever it is: no oracle.
OPENS_NOTHING = "this token opens nothing here"
NO_NEW_WORK = "this box takes no new work now"


class Parts:
    """What came of uploads before their connection broke, under a hash that only the same upload has."""

    def __init__(
        self,
        *,
        most_bytes: int = _PARTS_MAX_BYTES,
        least_bytes: int = _PART_LEAST_BYTES,
        kept_s: float = _PARTS_KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._least_bytes = least_bytes
        self._kept_s = kept_s
        self._clock = clock
        self._parts: dict[bytes, tuple[float, bytearray]] = {}

    def share(self, key: bytes) -> bytearray:
        """What is here of an upload; more is added to it in place.

        The same for all connections that say the same upload: one that broke may be noticed later than the next comes,
        and its last bytes do no harm, because each byte has its place."""
        self.drop_old()
        data = self._parts.pop(key, (0.0, bytearray()))[1]
        self._parts[key] = (self._clock(), data)
        return data

    def leave(self, key: bytes, data: bytearray) -> None:
        """Its connection is gone: keep what there is, from now on, if it is worth it."""
        self._parts.pop(key, None)
        if len(data) >= self._least_bytes:
            self._parts[key] = (self._clock(), data)
        self.drop_old()

    def finish(self, key: bytes) -> None:
        """It is whole, or will never be."""
        self._parts.pop(key, None)

    def drop_old(self) -> None:
        """Forget what is too old, and the oldest of what is too much."""
        oldest_s = self._clock() - self._kept_s
        kept_bytes = sum(len(data) for _, data in self._parts.values())
        for key, (when, data) in list(self._parts.items()):
            if when > oldest_s and kept_bytes <= self._most_bytes:
                return
            kept_bytes -= len(data)
            del self._parts[key]


@dataclass
class Upload:
    """One on its way. `have` begins with what an earlier connection brought."""

    store: m.Store
    have: bytearray = field(default_factory=bytearray)

    @property
    def is_big(self) -> bool:
        """Its sender may resume it: the protocol's rule 11."""
        return self.store.size > m.MAX_DATA_BYTES

    @property
    def key(self) -> bytes:
        """Only who says the same Store again gets at its part; the tokens in it are secret."""
        store = self.store
        manifest = hashlib.sha256(store.manifest).digest()
        size = store.size.to_bytes(8, "big")
        return hashlib.sha256(store.invocation + store.shutdown + store.digest + manifest + size).digest()

    def take(self, chunk: m.Chunk) -> None:
        """Add a chunk's bytes, but for those that are here already."""
        self.have += chunk.data[max(0, len(self.have) - chunk.offset) :]


class Shelf(Protocol):
    """What uploads use of the box: room, and a place for whole ones."""

    policy: Policy
    parts: Parts

    def reserve(self, size: int) -> bool:
        """Room for so many bytes, until `release`."""

    def release(self, size: int) -> None:
        """Give the room back."""

    async def save(self, invocation: bytes, shutdown: bytes, manifest: bytes, source: bytes) -> Saved:
        """Keep a function."""

    def function_hash(self, invocation: bytes) -> bytes:
        """What a function is known by."""


Answer = Callable[[m.Message], Awaitable[None]]
Refuse = Callable[[int, m.Code, str], Awaitable[None]]


class Uploads:
    """Those of one connection. `stored`: the hashes of the functions that count for its quota; it adds to them."""

    def __init__(self, shelf: Shelf, stored: set[bytes], answer: Answer, refuse: Refuse) -> None:
        self._stored = stored
        self._shelf = shelf
        self._answer = answer
        self._refuse = refuse
        self._running: dict[int, Upload] = {}

    async def begin(self, store: m.Store) -> None:
        """A Store: refuse it, or make room and say how much is here already."""
        if (maybe_refusal := self._maybe_refusal(store)) is not None:
            await self._refuse(store.channel, *maybe_refusal)
            return
        upload = Upload(store)
        self._running[store.channel] = upload
        if upload.is_big:
            upload.have = self._shelf.parts.share(upload.key)
            await self._answer(m.Ack(store.channel, len(upload.have), store.size))
        await self._maybe_finish(store.channel)

    async def go_on(self, chunk: m.Chunk) -> None:
        """More of one. (A Chunk of an upload that was refused does not come here: the protocol ignores it.)"""
        self._running[chunk.channel].take(chunk)
        await self._maybe_finish(chunk.channel)

    def stop(self) -> None:
        """The connection is gone: keep what has come of the big ones."""
        for upload in self._running.values():
            self._shelf.release(upload.store.size)
            # Another connection may have brought the rest meanwhile: of what is whole there is nothing to resume.
            if upload.is_big and len(upload.have) < upload.store.size:
                self._shelf.parts.leave(upload.key, upload.have)
        self._running.clear()

    def _maybe_refusal(self, store: m.Store) -> tuple[m.Code, str] | None:
        try:
            reasons = document.misfits(manifests.decode(store.manifest), self._shelf.policy)
        except ConfigError as error:
            reasons = [error.message]
        if reasons:
            return m.Code.MANIFEST, "; ".join(reasons)
        if not self._is_counted(store) and len(self._stored) + len(self._running) >= self._most:
            return m.Code.FULL, self._too_many
        if not self._shelf.reserve(store.size):
            return m.Code.FULL, "this box takes as many uploads at once as it can"
        return None

    async def _maybe_finish(self, channel: int) -> None:
        upload = self._running[channel]
        store = upload.store
        if len(upload.have) < store.size:
            return
        del self._running[channel]
        self._shelf.release(store.size)
        self._shelf.parts.finish(upload.key)
        if hashlib.sha256(upload.have).digest() != store.digest:
            await self._refuse(channel, m.Code.PROTOCOL, "the code that arrived is not what was announced")
            return
        # Others of the same circuit may have stored theirs meanwhile.
        if not self._is_counted(store) and len(self._stored) >= self._most:
            await self._refuse(channel, m.Code.FULL, self._too_many)
            return
        saved = await self._save(store, bytes(upload.have))
        if saved is Saved.DONE:
            await self._answer(m.Stored(channel, public_id(self._shelf.function_hash(store.invocation))))
        elif saved is Saved.FULL:
            await self._refuse(channel, m.Code.FULL, "this box keeps as many functions as it can")
        elif saved is Saved.PAUSED:
            await self._refuse(channel, m.Code.UNAVAILABLE, NO_NEW_WORK)
        else:
            await self._refuse(channel, m.Code.TOKEN, OPENS_NOTHING)

    @property
    def _most(self) -> int:
        return self._shelf.policy.functions_per_connection

    @property
    def _too_many(self) -> str:
        return f"this box keeps {self._most} functions of one connection"

    def _is_counted(self, store: m.Store) -> bool:
        """Whether it is said again: that takes no more of the quota."""
        return self._shelf.function_hash(store.invocation) in self._stored

    async def _save(self, store: m.Store, source: bytes) -> Saved:
        """Keep it. It counts from now on, not from when it is on disk: others of the circuit ask meanwhile."""
        function_hash = self._shelf.function_hash(store.invocation)
        counted = function_hash in self._stored
        self._stored.add(function_hash)
        saved = Saved.FULL
        try:
            saved = await self._shelf.save(store.invocation, store.shutdown, store.manifest, source)
        finally:
            if saved is not Saved.DONE and not counted:
                self._stored.discard(function_hash)
        return saved
