"""Where a session's output waits: in memory while that is little or somebody reads, else in sealed blocks on disk.

Owns when output moves to the disk and back, and when the function has to wait for room. Bytes and offsets are
`output`'s, slots and keys `spool`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bento_tor.server.output import Output, Tally
from bento_tor.server.spool import BLOCK_BYTES, SLOT_BYTES, Ref, Shelf

# Output in memory of one session: while somebody reads it, and while nobody does. A reader's window is 4 MiB.
_ATTENDED_BYTES = 4 * 1024 * 1024
_UNATTENDED_BYTES = 64 * 1024
# Output in memory of all sessions together. Beyond it, all have what an unattended one has.
MEMORY_BYTES = 128 * 1024 * 1024


class Backlog:
    """The output of one session, of at most `kept_bytes`. `ring`: called when there may be room again."""

    def __init__(self, kept_bytes: int, ring: Callable[[], None]) -> None:
        self.output: Output[Ref] = Output()
        self._kept_bytes = kept_bytes
        self._ring = ring
        self._maybe_shelf: Shelf | None = None
        self._tally = Tally()
        self._attended = False
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[bool]] = set()

    def keep_on(self, shelf: Shelf, tally: Tally) -> None:
        """Where it may wait on disk, and where all sessions' output in memory is counted."""
        self._maybe_shelf = shelf
        self._tally = tally
        self.output.share(tally)
        self.output.on_free = shelf.free

    def drop(self) -> None:
        """Nobody will read it any more: give back memory and disk."""
        self.output.clear()
        if self._maybe_shelf is not None:
            self._maybe_shelf.close()
        # Its function may still send some: that counts for nobody.
        self.output.share(Tally())

    def attend(self, attended: bool) -> None:
        """Somebody reads it now, or nobody does any more."""
        self._attended = attended
        if self.output.cost_bytes > self._soft_bytes:
            task = asyncio.create_task(self._settle())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def lift(self) -> None:
        """From now on everything is kept: what comes is bounded by others."""
        self._kept_bytes = 1 << 62

    async def load(self, offset: int) -> None:
        """Fetch from disk what must be here before the output at `offset` can be read. Raises Spoilt."""
        block = self.output.maybe_block(offset)
        if block is not None and self._maybe_shelf is not None:
            self.output.loaded(block, await self._maybe_shelf.get(block.ref))

    async def has_room(self) -> bool:
        """Whether more may be kept: all of it within the policy's cap, and little in memory. If not, `ring` is called
        when there may be."""
        if self.output.kept_bytes < self._kept_bytes and (await self._settle() or self._kept_bytes == 1 << 62):
            return True
        if self._maybe_shelf is not None:
            self._maybe_shelf.when_free(self._ring)
        return False

    @property
    def _soft_bytes(self) -> int:
        crowded = self._tally.total > MEMORY_BYTES
        return _ATTENDED_BYTES if self._attended and not crowded else _UNATTENDED_BYTES

    async def _settle(self) -> bool:
        """Move output to disk until what is in memory is little enough. False: the disk has no room for it."""
        async with self._moving:
            while self.output.cost_bytes > self._soft_bytes and self._maybe_shelf is not None:
                bundle = self.output.maybe_bundle(BLOCK_BYTES)
                if bundle is None:
                    break
                ref = await self._maybe_shelf.maybe_put(bundle.data)
                if ref is None:
                    return False
                self.output.sent_away(bundle, ref, SLOT_BYTES)
            return True
