"""What commands note in the keyring: new functions and sessions, how far output has been read, how sessions ended."""

from __future__ import annotations

import os

import msgspec

from bento_tor.cli import ui
from bento_tor.client import keyring
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.client.session import Session
from bento_tor.errors import ConfigError
from bento_tor.policy.outcome import Outcome


def keep_function(wanted: str, kept: Kept) -> str | None:
    """Its name in the keyring; None, with a warning, where that cannot be written: what exists at a box has to be
    told all the same, by its tickets."""
    try:
        with keyring.changing() as ring:
            name = ring.free_name(wanted)
            ring.functions[name] = kept
        return name
    except ConfigError as error:
        ui.warn(f"{error.message}: keep the tickets yourself")
        return None


def keep_session(of: str, kept: KeptSession) -> str | None:
    """The same for a session of the function (or call) `of`."""
    try:
        with keyring.changing() as ring:
            return ring.add_session(of, kept)
    except ConfigError as error:
        ui.warn(f"{error.message}: keep the ticket yourself")
        return None


def keep_place(name: str, offset: int) -> None:
    """Its output has been read up to `offset`. Nothing to do for a session that is not in the keyring."""
    _replace(name, offset=offset)


def note_attached(name: str) -> None:
    """This process is attached to it."""
    _replace(name, pid=os.getpid())


def note_left(name: str, offset: int = 0) -> None:
    """No process is attached any more; output has been read up to `offset`."""
    _replace(name, offset=offset, pid=0)


def note_end(name: str, outcome: Outcome, session: Session) -> None:
    """It has ended, and its output has been read."""
    if name:
        with keyring.changing() as ring:
            if name in ring.sessions:
                ring.end_session(name, outcome.word, session.log, session.offset)


def forget_function(name: str) -> None:
    """It has been erased: nothing of it stays here, neither its sessions nor what they printed."""
    with keyring.changing() as ring:
        ring.functions.pop(name, None)
        for session in [key for key, value in ring.sessions.items() if value.function == name]:
            del ring.sessions[session]


def _replace(name: str, *, offset: int = 0, pid: int | None = None) -> None:
    if not name:
        return
    with keyring.changing() as ring:
        if name in ring.sessions:
            kept = ring.sessions[name]
            # One that was displaced comes late, and knows less: the place never goes back.
            place, holder = max(kept.offset, offset), kept.pid if pid is None else pid
            ring.sessions[name] = msgspec.structs.replace(kept, offset=place, pid=holder)
