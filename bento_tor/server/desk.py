"""What all connections of a box share: its policy, its store, its sessions. The place where they meet.

The store blocks (each commit waits for the disk), so it has a thread of its own; one thread, so that it needs no lock.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from bento_tor.errors import Refused, SandboxError
from bento_tor.policy import document
from bento_tor.policy.manifest import Manifest
from bento_tor.policy.outcome import Kind, Outcome
from bento_tor.policy.signature import Signed
from bento_tor.protocol import messages
from bento_tor.server.audit import Audit
from bento_tor.server.host import HostStats
from bento_tor.server.keeping import Keeping
from bento_tor.server.session import Call, Session
from bento_tor.server.sessions import Sessions
from bento_tor.server.store import Saved, Store, StoredFunction
from bento_tor.server.uploads import NO_NEW_WORK, Parts

T = TypeVar("T")
log = logging.getLogger(__name__)

# Code on its way in, of all connections together: it is in memory until it is whole.
_UPLOADS_MAX_BYTES = 64 * 1024 * 1024
_COMPLAIN_S = 3600.0
_LOOK_S = 600.0


class Desk:
    """One box's shared state. All methods belong to the event loop's thread."""

    def __init__(self, signed: Signed, store: Store, sessions: Sessions, maybe_audit: Audit | None = None) -> None:
        self.policy = document.decode(signed.document)
        self.policy_digest = document.digest(signed.document)
        self.policy_message = messages.Policy(signed.document, signed.certificate, signed.signature)
        self._store = store
        self._sessions = sessions
        self.audit = maybe_audit or Audit()
        self._complain_after = 0.0
        self._host = HostStats(self.policy.host_stats)
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        # Two Executes with one session token, on two circuits, must start one session.
        self._starting = asyncio.Lock()
        self._expiring = asyncio.Event()  # some function has named its end
        self._uploading_bytes = 0
        # The operator wants no new work. What is known already is confirmed: a flight that tor brought twice.
        self.paused = False
        self.parts = Parts()

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
        """Keep a function; none that is new while the box is paused."""
        # Asked now and not on the disk's thread: what was queued before an order to erase is erased with the rest.
        return await self._on_disk(
            functools.partial(self._store.save, paused=self.paused), invocation, shutdown, manifest, source
        )

    def function_hash(self, invocation: bytes) -> bytes:
        """What a function is known by, here."""
        return self._store.function_hash(invocation)

    async def sweep(self) -> None:
        """Forget what is old; to be called now and then."""
        self.parts.drop_old()
        if swept := await self._on_disk(self._store.sweep_old):
            log.info("%d functions have expired", swept)

    async def sweep_ended(self) -> None:
        """Erase functions as their own end comes, to the second, and end what runs of them; then wait for the next
        one's. To be called again and again."""
        self._expiring.clear()
        erased, maybe_wait_s = await self._on_disk(self._store.sweep_ended)
        for function_hash in erased:
            # What has ended already may still be read: the function's last word may be that it is erased.
            async with self._starting:
                for session in self._sessions.of_function(function_hash):
                    if session.maybe_outcome is None:
                        session.end(Kind.KILLED_TIME)
        with suppress(TimeoutError):
            # The second is over only at its end; and a clock that is set must not be missed for long.
            async with asyncio.timeout(min(_LOOK_S, _LOOK_S if maybe_wait_s is None else maybe_wait_s + 0.01)):
                await self._expiring.wait()

    async def maybe_load(self, invocation: bytes) -> StoredFunction | None:
        """The function that this token opens."""
        return await self._on_disk(self._store.maybe_load, invocation)

    async def erase(self, shutdown: bytes) -> bytes | None:
        """Erase a function and end its sessions; gives its hash. None: the token opens nothing."""
        maybe_hash = await self._on_disk(self._store.erase, shutdown)
        if maybe_hash is not None:
            await self._end_sessions(maybe_hash, Kind.KILLED_USER)
        return maybe_hash

    async def take_down(self, public_id: str) -> bool:
        """The operator erases a function by its public id. False: there is none with it."""
        maybe_hash = await self._on_disk(self._store.erase_public, public_id)
        if maybe_hash is not None:
            await self._end_sessions(maybe_hash, Kind.KILLED_OPERATOR)
        return maybe_hash is not None

    async def _end_sessions(self, function_hash: bytes, why: Kind) -> None:
        self._end_those_known(function_hash, why)
        # A start that was on its way through before the erasure: it has its session by now. Else somebody who starts
        # his function again and again could have one run on after it was taken down.
        async with self._starting:
            self._end_those_known(function_hash, why)

    def _end_those_known(self, function_hash: bytes, why: Kind) -> None:
        for session in self._sessions.of_function(function_hash):
            session.end(why)
            self._sessions.forget(session.session_hash)

    def maybe_session(self, session: bytes) -> Session | None:
        """The session of this token, while it is in memory."""
        return self._sessions.maybe_get(self._store.session_hash(session))

    def forget(self, session: Session) -> None:
        """Its reader has everything."""
        if self._sessions.maybe_get(session.session_hash) is session:  # not another try, where this one could not start
            self._sessions.forget(session.session_hash)

    async def maybe_word(self, session: bytes) -> str | None:
        """How a session ended that is not in memory any more."""
        return await self._on_disk(self._store.maybe_outcome, self._store.session_hash(session))

    async def start(self, session: bytes, invocation: bytes, call: Call, manifest: Manifest) -> bool | None:
        """Start a session. True: it was known, and nothing is started; None: the box is full.

        Raises SandboxError where no sandbox can be had, Refused while the box takes no new work."""
        async with self._starting:
            session_hash = self._store.session_hash(session)
            known = self._sessions.maybe_get(session_hash) is not None
            if known or await self._on_disk(self._store.maybe_outcome, session_hash) is not None:
                return True
            if self.paused:
                raise Refused(NO_NEW_WORK)
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
            except SandboxError as error:
                self._complain(error)
                await self._on_disk(self._store.cancel_session, session_hash)
                raise
            return False

    def _complain(self, error: SandboxError) -> None:
        """Once an hour: a line in the log for each start that fails would tell when each client came."""
        now = asyncio.get_running_loop().time()
        if now >= self._complain_after:
            self._complain_after = now + _COMPLAIN_S
            log.error("no sandbox, and nothing more is said of it for an hour: %s", error.message)

    async def _maybe_keeping(self, invocation: bytes, manifest: Manifest) -> Keeping | None:
        """The storage of a function that asked for some; its data key stays in memory as long as the session runs."""
        policy = self.policy
        if not manifest.store or not policy.store_bytes:
            return None
        maybe_blobs = await self._on_disk(
            lambda: self._store.maybe_blobs(invocation, most_bytes=policy.store_bytes, most_blobs=policy.store_blobs)
        )
        return None if maybe_blobs is None else Keeping(maybe_blobs, self._on_disk, self._expiring.set)

    async def count_functions(self) -> int:
        """How many are stored."""
        return await self._on_disk(self._store.count_functions)

    @property
    def left(self) -> tuple[int, int]:
        """How many sessions run, and how many have ended and are owed to a reader."""
        return self._sessions.running, self._sessions.owed

    async def panic(self) -> tuple[int, int]:
        """Kill every session and erase everything on disk, for good: the box is to end. Gives how many sessions ran,
        and how many functions were kept."""
        self.paused = True
        killing = asyncio.create_task(self._sessions.stop(Kind.KILLED_OPERATOR))
        # While the sandboxes die, not after them.
        erased = await self._on_disk(self._store.erase_all)
        killed = await killing
        # A start that was on its way through: it has its session by now.
        async with self._starting:
            killed += await self._sessions.stop(Kind.KILLED_OPERATOR)
        await self._on_disk(self._store.erase_all)
        return killed, erased

    async def stop(self) -> None:
        """End all sessions; every outcome is on disk when this returns."""
        await self._sessions.stop()
        await asyncio.to_thread(self._disk.shutdown)
        self._store.close()

    async def _note_end(self, session: Session, outcome: Outcome) -> None:
        await self._on_disk(self._store.end_session, session.session_hash, outcome.word)

    async def _on_disk(self, work: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *values)
