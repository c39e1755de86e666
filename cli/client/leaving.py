"""How a command lets go of a session that it carries: Ctrl-C once leaves it running, twice ends it.

Owns the order in which that is safe: what is needed to come back is on disk before anything else is tried.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bento_tor.cli import ui
from bento_tor.cli.client.talk import Talk
from bento_tor.client.session import Session
from bento_tor.errors import ConnectError, TorError
from bento_tor.policy.outcome import Outcome

AGAIN_WITHIN_S = 2.0


class Terminated(KeyboardInterrupt):
    """A SIGTERM: nobody will come back for the session."""


@dataclass
class Left(Exception):
    """The session goes on without us. `come_back` is the command that comes back to it."""

    come_back: str
    why: BaseException


class Interrupts:
    """SIGINT and SIGTERM as exceptions, but never between reading a piece of output and having written it: it would
    be lost, or come twice."""

    def __init__(self) -> None:
        self._busy = False
        self._maybe_asked: type[KeyboardInterrupt] | None = None

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The block runs to its end; what was asked for meanwhile is raised then."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._maybe_asked is not None:
            raise self._maybe_asked

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if not self._busy:
            raise kind
        self._maybe_asked = kind


def carry(session: Session, talk: Talk, *, note: Callable[[int], str]) -> Outcome:
    """Carry the session until it ends. Raises Left where the user leaves it, or the way to the box is lost.

    `note` writes down how far its output was read, and gives the command that comes back."""
    try:
        with Interrupts() as interrupts:
            return talk.carry(session, interrupts.undisturbed)
    except Terminated:
        return _end(session, talk)
    except (ConnectError, TorError) as why:
        talk.stop()
        raise Left(note(talk.place), why) from why
    except KeyboardInterrupt as why:
        with _Presses() as presses:
            talk.stop()
            come_back = note(talk.place)
            ui.say(f"left running: '{come_back}' comes back to it")
            again = presses.follow()
        if again:
            ui.say("ending it")
            return _end(session, talk)
        # What was read and not written must not be acknowledged.
        session.offset = talk.place
        session.detach()
        raise Left(come_back, why) from why


class _Presses:
    """Looks for one more Ctrl-C. In the block it interrupts nothing: what is written down gets written."""

    def __enter__(self) -> _Presses:
        self._pressed = False
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def follow(self) -> bool:
        """Whether it comes, within a while. Only somebody at a terminal can press it."""
        if not sys.stderr.isatty():
            return False
        ui.say(f"Ctrl-C again within {AGAIN_WITHIN_S:g} seconds ends it")
        deadline = time.monotonic() + AGAIN_WITHIN_S
        while not self._pressed and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._pressed

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        self._pressed = True


def _end(session: Session, talk: Talk) -> Outcome:
    session.end()
    return talk.carry_rest(session)
