"""Doors: listening unix sockets of one sandbox's own: for its egress, the gate to tor, and
the courier to other boxes, where it has them.

The keeper makes them, in directories that only the keeper can change; the sandbox has them at /run/egress.sock,
/run/tor.sock and /run/box.sock, and may connect; who accepts is not our business. Until somebody does, they are dead.
"""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bento_tor.errors import SandboxError

# A function that connects and is not accepted waits here, not in anybody's memory.
_BACKLOG = 64
# Other users may pass through the directory to a socket that is theirs, and may not list it.
_MODE = 0o711


@dataclass(frozen=True, slots=True)
class Door:
    """One sandbox's. `listener` is ours until it is handed on."""

    path: Path
    listener: socket.socket

    def remove(self) -> None:
        """Its sandbox is gone."""
        self.listener.close()
        with suppress(OSError):
            self.path.unlink()


class Doors:
    """Makes doors in `directory`, which is the keeper's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Make the directory fit. Raises SandboxError."""
        try:
            self._directory.mkdir(mode=_MODE, parents=True, exist_ok=True)
            self._directory.chmod(_MODE)
        except OSError as why:
            raise SandboxError(f"{self._directory} cannot hold the sandboxes' sockets: {why.strerror}") from why

    def make(self, uid: int | None) -> Door:
        """One that only the user `uid` can connect to (None: our own user). Raises SandboxError."""
        path = self._directory / str(next(self._numbers))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # of a keeper that was killed
            listener.bind(str(path))
            path.chmod(0o600)
            if uid is not None:
                os.chown(path, uid, uid)
            listener.listen(_BACKLOG)
        except OSError as why:
            listener.close()
            raise SandboxError(f"no socket for a sandbox's egress: {why.strerror or why}") from why
        return Door(path, listener)
