"""What the operator may order of a running box. Each verb acts at once, and answers when it is done.

Who may give orders is the socket's business (operator.py). Every order that touches what functions may do narrows it;
`blocks` carries no address: the keeper reads the operator's own file, which this process could not write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from bento_tor.errors import ConfigError, SandboxError
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server.audit import Audit
from bento_tor.server.desk import Desk
from bento_tor.server.operator import Answer, Verb

log = logging.getLogger(__name__)

# How often a box that is being drained looks whether all is done.
_DRAIN_S = 0.2
_MAX_DIGITS = 18


class Verbs:
    """The verbs of one box. `stop`: makes it end as it does at SIGTERM; its keeper is told that it was ordered."""

    def __init__(self, desk: Desk, audit: Audit, link: KeeperLink, stop: Callable[[], None]) -> None:
        self._desk = desk
        self._audit = audit
        self._link = link
        self._stop = stop
        self._maybe_draining: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        """Whether it ends when nobody is owed anything."""
        return self._maybe_draining is not None

    @property
    def table(self) -> Mapping[str, Verb]:
        """By their words."""
        return {
            "audit": self.audit,
            "blocks": self.blocks,
            "drain": self.drain,
            "panic": self.panic,
            "pause": self.pause,
            "resume": self.resume,
            "state": self.state,
            "takedown": self.take_down,
        }

    async def take_down(self, words: list[str]) -> Answer:
        """Erase one function."""
        if len(words) != 1:
            raise ConfigError("takedown wants the public id of one function")
        if not await self._desk.take_down(words[0]):
            raise ConfigError(f"this box has no function with the public id {words[0][:64]!r}")
        log.info("the operator has taken down a function")
        return {"erased": words[0]}

    async def pause(self, words: list[str]) -> Answer:
        """No new work; what runs goes on."""
        _take_none("pause", words)
        self._desk.paused = True
        return self._state()

    async def resume(self, words: list[str]) -> Answer:
        """New work again; a drain that was ordered is called off."""
        _take_none("resume", words)
        if self._maybe_draining is not None:
            self._maybe_draining.cancel()
            self._maybe_draining = None
        self._desk.paused = False
        return self._state()

    async def drain(self, words: list[str]) -> Answer:
        """No new work, and the end once nobody is owed anything. Answers at once with what is left."""
        _take_none("drain", words)
        self._desk.paused = True
        if self._maybe_draining is None:
            self._maybe_draining = asyncio.create_task(self._drain())
        return self._state()

    async def state(self, words: list[str]) -> Answer:
        """How it stands: changes nothing."""
        _take_none("state", words)
        return self._state()

    async def panic(self, words: list[str]) -> Answer:
        """Kill and erase everything, then end."""
        _take_none("panic", words)
        killed, erased = await self._desk.panic()
        self._end()
        return {"killed": killed, "erased": erased}

    async def audit(self, words: list[str]) -> Answer:
        """What happened: single events above a number, where they are kept, and rounded counts."""
        since = words[0] if len(words) == 1 else "0"
        if len(words) > 1 or not since.isascii() or not since.isdecimal() or len(since) > _MAX_DIGITS:
            raise ConfigError("audit wants the number of the last event that was seen, or nothing")
        return {
            "enabled": self._audit.enabled,
            "events": msgspec.to_builtins(self._audit.events(int(since))),
            "hours": msgspec.to_builtins(self._audit.counters()),
        }

    async def blocks(self, words: list[str]) -> Answer:
        """What is blocked has changed: it holds when this answers. `holds` is false where nothing goes out anyway."""
        _take_none("blocks", words)
        if "exit" not in self._desk.policy.egress:
            return {"holds": False}
        await self._link.look()
        return {"holds": True}

    def close(self) -> None:
        """The box ends."""
        if self._maybe_draining is not None:
            self._maybe_draining.cancel()

    def _state(self) -> Answer:
        running, waiting = self._desk.left
        return {
            "paused": self._desk.paused,
            "draining": self.draining,
            "running": running,
            "waiting": waiting,
        }

    async def _drain(self) -> None:
        while any(self._desk.left):
            await asyncio.sleep(_DRAIN_S)
        self._end()

    def _end(self) -> None:
        with suppress(SandboxError):  # it has gone, or is too busy to hear that our end is no fault: end all the same
            self._link.leave()
        self._stop()


def _take_none(verb: str, words: list[str]) -> None:
    if words:
        raise ConfigError(f"{verb} wants no more words")
