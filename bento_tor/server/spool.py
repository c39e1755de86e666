"""Output that waits on disk: one file of a box, in sealed blocks of one size, that only this process can read.

The file has no name from its first moment on, so nothing is left of it after a crash. Each session's blocks are sealed
under a key of its own that is in memory only: a seized disk tells how many blocks there were, and nothing else. Owns
which slots of the file are taken; what is in a block is `output`'s business. Disk work is done on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bento_tor.errors import BentoError

log = logging.getLogger(__name__)

SLOT_BYTES = 64 * 1024
_TAG_BYTES = 16
BLOCK_BYTES = SLOT_BYTES - _TAG_BYTES
_NONCE_BYTES = 12
# After a failure the disk is tried again this much later, and it is said in the log once in so long. At once, sessions
# that wait for each other's slots would try without end.
_RETRY_S = 5.0
_COMPLAIN_S = 3600.0


class Spoilt(BentoError):
    """What was kept on disk cannot be read back."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a block is, and the number it was sealed with."""

    slot: int
    number: int


class Spool:
    """The file of one box, of at most `most_bytes`. Belongs to one event loop's thread. Close it at the end."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (as long as the box)
        self._most = most_bytes // SLOT_BYTES
        self._free: list[int] = []
        self._stop = 0  # slots from here on have never been used, or not since the file was last empty
        self._waiting: set[Callable[[], None]] = set()
        self._maybe_retry: asyncio.TimerHandle | None = None
        self._complain_after = 0.0
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    @property
    def used_bytes(self) -> int:
        """What is taken now."""
        return (self._stop - len(self._free)) * SLOT_BYTES

    @property
    def most_bytes(self) -> int:
        """What may be taken."""
        return self._most * SLOT_BYTES

    def shelf(self) -> Shelf:
        """A place for one session's blocks."""
        return Shelf(self)

    def when_free(self, call: Callable[[], None]) -> None:
        """Call once, when a slot has become free."""
        self._waiting.add(call)

    def maybe_take(self) -> int | None:
        """A slot; None where all are taken."""
        if self._free:
            return self._free.pop()
        if self._stop >= self._most:
            return None
        self._stop += 1
        return self._stop - 1

    def give_back(self, slot: int) -> None:
        """It is not needed any more."""
        self._put_back(slot)
        self._tell_waiting()

    def fail(self, slot: int, why: OSError) -> None:
        """The disk did not take what was for this slot: who waits for one waits a while longer."""
        self._put_back(slot)
        loop = asyncio.get_running_loop()
        if self._maybe_retry is None:
            self._maybe_retry = loop.call_later(_RETRY_S, self._retry)
        if loop.time() >= self._complain_after:
            self._complain_after = loop.time() + _COMPLAIN_S
            log.warning("output cannot be kept on disk, and nothing more is said of it for an hour: %s", why)

    def _retry(self) -> None:
        self._maybe_retry = None
        self._tell_waiting()

    def _put_back(self, slot: int) -> None:
        self._free.append(slot)
        if len(self._free) == self._stop:
            self._free.clear()
            self._stop = 0
            self._disk.submit(self._shrink)

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for call in waiting:
            call()

    async def write(self, slot: int, key: AESGCM, nonce: bytes, block: bytes) -> None:
        """Seal a block into its slot. Raises OSError where the disk takes it not."""

        def work() -> None:
            sealed = key.encrypt(nonce, block, None)
            if os.pwrite(self._file.fileno(), sealed, slot * SLOT_BYTES) != SLOT_BYTES:
                raise OSError("the disk took only part of a block")

        await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def read(self, slot: int, key: AESGCM, nonce: bytes) -> bytes:
        """A block. Raises Spoilt."""

        def work() -> bytes:
            return key.decrypt(nonce, os.pread(self._file.fileno(), SLOT_BYTES, slot * SLOT_BYTES), None)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, work)
        except (OSError, InvalidTag, ValueError) as why:
            raise Spoilt("output that was kept on disk cannot be read back") from why

    def close(self) -> None:
        """Wait for the disk, and let the file go."""
        if self._maybe_retry is not None:
            self._maybe_retry.cancel()
        self._disk.shutdown()
        self._file.close()

    def _shrink(self) -> None:
        """Give the disk back what an hour of much output took. On the disk's thread, after every earlier work; a write
        that comes later makes the file as long as it must be."""
        if self._stop == 0:
            os.ftruncate(self._file.fileno(), 0)


class Shelf:
    """One session's blocks. When it is closed its key is forgotten, and with it what they say."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._key = AESGCM(secrets.token_bytes(32))
        self._numbers = 0
        self._slots: set[int] = set()
        self._closed = False

    async def maybe_put(self, block: bytes) -> Ref | None:
        """Keep a block of up to BLOCK_BYTES, padded to that. None: there is no room."""
        slot = None if self._closed else self._spool.maybe_take()
        if slot is None:
            return None
        self._numbers += 1
        # Never twice under one key: a second block under one nonce would tell both.
        ref = Ref(slot, self._numbers)
        try:
            await self._spool.write(slot, self._key, _nonce(ref), block.ljust(BLOCK_BYTES, b"\0"))
        except OSError as why:
            self._spool.fail(slot, why)
            return None
        if self._closed:
            self._spool.give_back(slot)
            return None
        self._slots.add(slot)
        return ref

    async def get(self, ref: Ref) -> bytes:
        """The block, with its padding. Raises Spoilt."""
        return await self._spool.read(ref.slot, self._key, _nonce(ref))

    def free(self, ref: Ref) -> None:
        """It is not needed any more."""
        if ref.slot in self._slots:
            self._slots.remove(ref.slot)
            self._spool.give_back(ref.slot)

    def when_free(self, call: Callable[[], None]) -> None:
        """Call once, when there may be room again."""
        self._spool.when_free(call)

    def close(self) -> None:
        """Free everything."""
        self._closed = True
        for slot in self._slots:
            self._spool.give_back(slot)
        self._slots = set()


def _nonce(ref: Ref) -> bytes:
    return ref.number.to_bytes(_NONCE_BYTES, "big")
