"""What the interactive shell holds open: its connection, and sessions, whose output is shown as it comes.

Owns the threads that show it, and what is noted of these sessions. It asks nothing of the user.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bento_tor.cli.client import remember
from bento_tor.cli.client.reach import Reach
from bento_tor.cli.client.talk import Talk
from bento_tor.client.box import Box
from bento_tor.client.keyring import KeptSession
from bento_tor.client.session import Session
from bento_tor.client.transport import Silent
from bento_tor.errors import BentoError
from bento_tor.policy.outcome import Outcome

# One message of one session at a time.
_PRINTING = threading.Lock()


class SharedBox:
    """The connection that all words of the shell share, made when it is first needed. It comes back by itself."""

    def __init__(self, reach: Reach, address: str) -> None:
        self.address = address
        self.timeout_s = reach.timeout_s
        self._reach = reach
        self._maybe_box: Box | None = None

    def get(self) -> Box:
        """The box. Raises what connecting raises."""
        if self._maybe_box is None:
            self._maybe_box = self._reach.box(self.address).__enter__()
        return self._maybe_box

    def close(self) -> None:
        """The connection ends; sessions go on."""
        if self._maybe_box is not None:
            self._maybe_box.__exit__(None, None, None)
            self._maybe_box = None


@dataclass(frozen=True)
class Visit:
    """A session of the keyring (or, with an empty name, of a ticket), attached."""

    known_as: str
    kept: KeptSession
    session: Session


class Opened:
    """An attached session. `ended` is called in its thread when it has ended, or an error has ended it."""

    def __init__(self, name: str, session: Session, *, show_name: bool, ended: Callable[[Opened], None]) -> None:
        self.name = name
        self.session = session
        self.maybe_outcome: Outcome | None = None
        self.maybe_error: BentoError | None = None
        self.left = False
        self.ending = False  # at the user's own wish
        self.talk = Talk(raw=False, file=None, as_json=False, prefix=f"{name}: " if show_name else "")
        self._ended = ended
        self._taken = 0
        self._over = False
        self._state = threading.Condition()
        session.before_ack = self._note_place
        self._thread = threading.Thread(target=self._show, name=f"session {name}", daemon=True)
        self._thread.start()

    def take_message(self, timeout_s: float) -> bool:
        """Wait until one message more has been shown than were taken. False: the session has ended before.

        Raises Silent after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._state:
            while self.talk.shown <= self._taken:
                if self.is_over():
                    return False
                if not self._state.wait(max(0.0, deadline - time.monotonic())):
                    raise Silent
            self._taken += 1
            return True

    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def wait(self) -> None:
        """Until nothing more will come."""
        with self._state:
            while not self.is_over():
                self._state.wait()
        self._thread.join()

    def end(self) -> None:
        """Stop the function now, and wait until that is done."""
        self.ending = True
        self.session.end()
        self.wait()

    def leave(self) -> None:
        """Nothing that happens from here on is told; the connection is about to be closed."""
        self.left = True
        remember.note_left(self.name, self.talk.place)

    def _note_place(self, offset: int) -> None:
        remember.keep_place(self.name, offset)

    def _show(self) -> None:
        try:
            outcome = self.talk.carry_rest(self.session, self._shown)
        except BentoError as error:
            self._end(None, error)
        else:
            self._end(outcome, None)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        with _PRINTING:
            yield
        with self._state:
            self._state.notify_all()

    def _end(self, maybe_outcome: Outcome | None, maybe_error: BentoError | None) -> None:
        if self.left:
            return
        self.maybe_outcome, self.maybe_error = maybe_outcome, maybe_error
        with _PRINTING:
            self._ended(self)
        with self._state:
            self._over = True
            self._state.notify_all()
