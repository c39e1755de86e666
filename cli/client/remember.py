"""What commands note in the keyring about a session: how far its output has been read, and that it has ended."""

from __future__ import annotations

import msgspec

from bento_tor.client import keyring


def keep_place(name: str, offset: int) -> None:
    """Its output has been read up to `offset`. Nothing to do for a session that came by a ticket."""
    if name:
        with keyring.changing() as ring:
            if name in ring.sessions:
                ring.sessions[name] = msgspec.structs.replace(ring.sessions[name], offset=offset)


def forget_session(name: str) -> None:
    """It has ended, and its output has been read."""
    if name:
        with keyring.changing() as ring:
            ring.sessions.pop(name, None)
