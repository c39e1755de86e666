"""User ids for sessions: one for each that runs, never one that somebody else has. Only where we are root."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from contextlib import suppress
from pathlib import Path

from bento_tor.errors import ConfigError, SandboxError

# Above what Debian, systemd and container engines hand out.
FIRST_UID = 1_880_000_001
BLOCK_UIDS = 256
_BLOCKS = 64
# A user id that no session may have: the last that useradd would give to the system's own services.
_LAST_SYSTEM_UID = 999


class Uids:
    """A range of user ids. Without a range of the operator's, a block that no other box on this machine
    has."""

    def __init__(self, uids: range | None = None) -> None:
        """Raises ConfigError for a range that holds root or a system user."""
        if uids is not None and (not uids or min(uids) <= _LAST_SYSTEM_UID):
            raise ConfigError(f"user ids for functions start above {_LAST_SYSTEM_UID}", hint="choose another range")
        self._range = uids
        self._claim: socket.socket | None = None
        self._free: deque[int] = deque()

    def open(self) -> None:
        """Fill the range. Raises SandboxError where every block is taken."""
        uids = self._claim_block() if self._range is None else self._range
        _sweep(uids)
        self._free = deque(uids)

    def close(self) -> None:
        """Let others have the block."""
        self._free.clear()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def take(self) -> int:
        """One that nothing runs under, the longest unused first. Raises SandboxError when there is none."""
        if not self._free:
            raise SandboxError("all user ids for functions are in use")
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        """Nothing runs under `uid` any more."""
        self._free.append(uid)

    def _claim_block(self) -> range:
        # An abstract socket's name goes with its process, however that ends: no lock file to leave behind.
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for block in range(_BLOCKS):
            with suppress(OSError):
                claim.bind(f"\0bento-tor/uids/{block}")
                self._claim = claim
                return range(FIRST_UID + block * BLOCK_UIDS, FIRST_UID + (block + 1) * BLOCK_UIDS)
        claim.close()
        raise SandboxError("too many boxes run on this machine", hint="end one, or give each its own user ids")


def _sweep(uids: range) -> None:
    """End what a keeper left that was killed while bubblewrap had not yet made sure that it dies with us.

    Only orphans: what has a keeper is not ours to end, whatever its user id."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            pid = int(path.name)
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if path.stat().st_uid in uids and parent == 1 != os.getpid():
                os.kill(pid, signal.SIGKILL)
