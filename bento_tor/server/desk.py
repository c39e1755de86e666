"""What all connections of a box share: its policy, its store, its sessions. The place where they meet.

The store blocks (each commit waits for the disk), so it has a thread of its own; one thread, so that it needs no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from bento_tor.errors import SandboxError
from bento_tor.policy import document
from bento_tor.policy.manifest import Manifest
from bento_tor.policy.outcome import Kind, Outcome
from bento_tor.policy.signature import Signed
from bento_tor.protocol import messages
from bento_tor.server.host import HostStats
from bento_tor.server.keeping import Keeping
from bento_tor.server.sessions import Call, Session, Sessions
from bento_tor.server.store import Saved, Store, StoredFunction

T = TypeVar("T")
log = logging.getLogger(__name__)

# Code on its way in, of all connections together: it is in memory until it is whole.
_UPLOADS_MAX_BYTES = 64 * 1024 * 1024


class Desk:
    """One box's shared state. All methods belong to the event loop's thread."""

    def __init__(self, signed: Signed, store: Store, sessions: Sessions) -> None:
        self.policy = document.decode(signed.document)
        self.policy_digest = document.digest(signed.document)
        self.policy_message = messages.Policy(signed.document, signed.certificate, signed.signature)
        self._store = store
        self._sessions = sessions
        self._host = HostStats(self.policy.host_stats)
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        # Two Executes with one session token, on two circuits, must start one session.
        self._starting = asyncio.Lock()
        self._uploading_bytes = 0

    def reserve(self, size: int) -> bool:
        """Room for an upload of so many bytes, until `release`. False: too much is being uploaded already."""
        if self._uploading_bytes + size > _UPLOADS_MAX_BYTES:
            return False
        self._uploading_bytes += size
        return True

    def release(self, size: int) -> None:
        """That upload is over."""
        self._uploading_bytes -= size

    async def save(self, invocation: bytes, shutdown: bytes, manifest: bytes, source: bytes) -> Saved:
        """Keep a function."""
        return await self._on_disk(self._store.save, invocation, shutdown, manifest, source)

    def function_hash(self, invocation: bytes) -> bytes:
        """What a function is known by, here."""
        return self._store.function_hash(invocation)

    async def sweep(self) -> None:
        """Forget what is old; to be called now and then."""
        if swept := await self._on_disk(self._store.sweep_old):
            log.info("%d functions have expired", swept)

    async def maybe_load(self, invocation: bytes) -> StoredFunction | None:
        """The function that this token opens."""
        return await self._on_disk(self._store.maybe_load, invocation)

    async def erase(self, shutdown: bytes) -> bytes | None:
        """Erase a function and end its sessions; gives its hash. None: the token opens nothing."""
        maybe_hash = await self._on_disk(self._store.erase, shutdown)
        if maybe_hash is not None:
            self._end_sessions(maybe_hash, Kind.KILLED_USER)
        return maybe_hash

    async def take_down(self, public_id: str) -> bool:
        """The operator erases a function by its public id. False: there is none with it."""
        maybe_hash = await self._on_disk(self._store.erase_public, public_id)
        if maybe_hash is not None:
            self._end_sessions(maybe_hash, Kind.KILLED_OPERATOR)
        return maybe_hash is not None

    def _end_sessions(self, function_hash: bytes, why: Kind) -> None:
        for session in self._sessions.of_function(function_hash):
            session.end(why)
            self._sessions.forget(session.session_hash)

    def maybe_session(self, session: bytes) -> Session | None:
        """The session of this token, while it is in memory."""
        return self._sessions.maybe_get(self._store.session_hash(session))

    def forget(self, session: Session) -> None:
        """Its reader has everything."""
        self._sessions.forget(session.session_hash)

    async def maybe_word(self, session: bytes) -> str | None:
        """How a session ended that is not in memory any more."""
        return await self._on_disk(self._store.maybe_outcome, self._store.session_hash(session))

    async def start(self, session: bytes, invocation: bytes, call: Call, manifest: Manifest) -> bool | None:
        """Start a session. True: it was known, and nothing is started; None: the box is full.

        Raises SandboxError where no sandbox can be had."""
        async with self._starting:
            session_hash = self._store.session_hash(session)
            known = self._sessions.maybe_get(session_hash) is not None
            if known or await self._on_disk(self._store.maybe_outcome, session_hash) is not None:
                return True
            if self._sessions.full:
                return None
            if not await self._on_disk(self._store.begin_session, session, invocation):
                return True
            new = Session(
                session_hash,
                self._store.function_hash(invocation),
                kept_bytes=self.policy.kept_bytes,
                output_bytes=self.policy.output_bytes,
                keeping=await self._maybe_keeping(invocation, manifest),
                host=lambda: asyncio.to_thread(self._host.measure, manifest.host),
            )
            try:
                limits, image = document.limits_for(manifest, self.policy), self.policy.images.index(manifest.image)
                await self._sessions.start(new, call, limits, self._note_end, image=image)
            except SandboxError:
                await self._on_disk(self._store.cancel_session, session_hash)
                raise
            return False

    async def _maybe_keeping(self, invocation: bytes, manifest: Manifest) -> Keeping | None:
        """The storage of a function that asked for some; its data key stays in memory as long as the session runs."""
        policy = self.policy
        if not manifest.store or not policy.store_bytes:
            return None
        maybe_blobs = await self._on_disk(
            lambda: self._store.maybe_blobs(invocation, most_bytes=policy.store_bytes, most_blobs=policy.store_blobs)
        )
        return None if maybe_blobs is None else Keeping(maybe_blobs, self._on_disk)

    async def stop(self) -> None:
        """End all sessions; every outcome is on disk when this returns."""
        await self._sessions.stop()
        await asyncio.to_thread(self._disk.shutdown)
        self._store.close()

    async def _note_end(self, session: Session, outcome: Outcome) -> None:
        await self._on_disk(self._store.end_session, session.session_hash, outcome.word)

    async def _on_disk(self, work: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *values)
