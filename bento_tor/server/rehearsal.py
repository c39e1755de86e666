"""A rehearsal: rows of the hostile table played as a box would run them, with a bystander's session beside each.

A keeper in a process of its own, and here what a box has between its keeper and its clients: sessions and the
audit. No clients, no store. Owns nothing of what a row expects (sandbox/hostile.py); used by `doctor --hostile` and by
the tests, which look at the keeper from outside besides.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from bento_tor.errors import BentoError, SandboxError
from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Outcome
from bento_tor.protocol import messages as m
from bento_tor.sandbox.hostile import CEILING, MOST, Row
from bento_tor.sandbox.images import Image
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper
from bento_tor.sandbox.link import KeeperLink
from bento_tor.server.audit import Audit, Kind
from bento_tor.server.session import Call, Session
from bento_tor.server.sessions import Sessions
from bento_tor.server.spool import Spool

log = logging.getLogger(__name__)

# A session beside a hostile one is answered within this; generous, for the machine may have other work.
ANSWER_S = 10.0
_PLAY_S = 60.0
_KEPT_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a row. `answered_s`: how long the bystander's whole session took meanwhile, in seconds.

    `ends`: the words of the audit's `end` events. `log`: what it printed last, and the outcome's detail."""

    word: str
    said: tuple[str, ...]
    answer: tuple[str, ...]
    answered_s: float
    ends: tuple[str, ...]
    log: str

    def problems(self, row: Row, *, root: bool, cgroups: bool, browser: bool = False) -> list[str]:
        """How it differs from what the row expects on a host and in an image like that; empty: it does not."""
        found = row.problems(self.word, self.said, self.answer, root=root, cgroups=cgroups, browser=browser)
        if self.answered_s > ANSWER_S:
            found.append(f"a session beside it waited {self.answered_s:.1f} s")
        # The number of `exited` is the function's choice, and no word of the audit's.
        due = sorted(["returned", "exited" if self.word.startswith("exited:") else self.word])
        if sorted(self.ends) != due:
            found.append(f"the audit has the ends {' '.join(self.ends) or 'none'}, not {' '.join(due)}")
        return found


class _Told(msgspec.Struct, frozen=True):
    """What the keeper's process says when it is up, or cannot be."""

    pid: int
    effective: tuple[str, ...] = ()
    failure: str = ""
    hint: str = ""


class Rehearsal:
    """Plays rows, one after another. `uids`: as in Jail. Enter it where there are no other threads: it forks."""

    def __init__(self, image: Image, *, uids: range | None = None) -> None:
        self._image = image
        self._uids = uids
        self._stack = ExitStack()
        self._link: KeeperLink | None = None
        # The keeper's process; which limits hold there for a session as a whole.
        self.pid = 0
        self.effective: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        """Start the keeper. Raises SandboxError where it cannot make sandboxes at all."""
        with self._stack:
            sock = self._stack.enter_context(self._start_keeper())
            self._audit = Audit(enabled=True)
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bento-rehearsal-"))
            spool = Spool(Path(folder), 0)  # what is not read yet waits in memory, and its function with it
            self._stack.callback(spool.close)
            self._runner = self._stack.enter_context(asyncio.Runner())
            link = self._link = KeeperLink(sock)
            self._sessions = Sessions(link, running_max=2, kept_s=0.0, spool=spool, maybe_audit=self._audit)
            self._runner.run(self._open(link))
            self._stack.callback(lambda: self._runner.run(self._close(link)))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def play(self, row: Row) -> Played:
        """The row's session to its end, and a bystander's while it runs. Raises SandboxError where none starts."""
        return self._runner.run(self._play(row))

    async def _play(self, row: Row) -> Played:
        noted = max((event.number for event in self._audit.events()), default=0)
        async with asyncio.timeout(_PLAY_S):
            hostile = await self._start(row.source(), row.bounds())
            saying = asyncio.create_task(_read(hostile))
            began = time.monotonic()
            answer = await _read(await self._start(row.bystanders_source(), CEILING))
            answered_s = time.monotonic() - began
            said = await saying
            outcome = hostile.maybe_outcome or Outcome.lost()
        ends = tuple(str(event.word) for event in self._audit.events(noted) if event.kind is Kind.END)
        printed = hostile.log_tail.decode("utf-8", "replace")[-300:] + outcome.detail[-300:]
        return Played(outcome.word, said, answer, answered_s, ends, printed)

    async def _start(self, source: str, limits: Limits) -> Session:
        session = Session(os.urandom(32), bytes(32), kept_bytes=_KEPT_BYTES, host=_no_facts)
        await self._sessions.start(session, Call("f", "([], {})", source.encode()), limits, _note_nothing)
        return session

    def _start_keeper(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(read_fd)
            _become_keeper(self._image, self._uids, theirs, write_fd)
        theirs.close()
        os.close(write_fd)
        self._stack.callback(os.waitpid, pid, 0)
        # It ends by itself when its box's socket is closed.
        self._stack.callback(ours.close)
        with os.fdopen(read_fd, "rb") as pipe:
            text = pipe.read()
        told = msgspec.json.decode(text, type=_Told) if text else _Told(pid, failure="the keeper has ended by itself")
        if told.failure:
            raise SandboxError(told.failure, hint=told.hint)
        self.pid, self.effective = told.pid, frozenset(told.effective)
        return ours

    async def _open(self, link: KeeperLink) -> None:
        link.open()

    async def _close(self, link: KeeperLink) -> None:
        await self._sessions.stop()
        link.close()


async def _read(session: Session) -> tuple[str, ...]:
    """Every whole message until its end, acknowledged as it comes."""
    messages, offset = [b""], 0
    while True:
        # Taken before the look: a change during it must not be missed.
        bell = session.bell
        while piece := session.output.maybe_read(offset, m.INITIAL_WINDOW, m.MAX_DATA_BYTES):
            offset = piece.stop
            messages[-1] += piece.data
            if piece.end:
                messages.append(b"")
            session.acknowledge(offset)
        if session.maybe_outcome is not None and offset >= session.output.stop:
            return tuple(message.decode("utf-8", "replace") for message in messages[:-1])
        await bell.wait()


def _become_keeper(image: Image, uids: range | None, sock: socket.socket, told_fd: int) -> NoReturn:
    """In the child: serve until the other side has gone."""
    status = 1
    try:
        with Jail(image, uids=uids) as jail, os.fdopen(told_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode(_Told(os.getpid(), tuple(sorted(jail.effective)))))
            pipe.close()
            Keeper(sock, jail, ceiling=MOST, pool_size=0).run(os.eventfd(0))
        status = 0
    except BentoError as error:
        os.write(told_fd, msgspec.json.encode(_Told(os.getpid(), failure=error.message, hint=error.hint)))
    except Exception:
        log.exception("the keeper's machinery broke")
    finally:
        os._exit(status)


async def _note_nothing(session: Session, outcome: Outcome) -> None:
    """There is no store whose rows could be brought up to date."""


async def _no_facts() -> dict[str, Any]:
    return {}
