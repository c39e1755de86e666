"""The user's tokens, under short names, in one file that only she can read. Also the policies that she has accepted.

Written whole to a file beside it and renamed, under a lock: two commands at once lose nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bento_tor.config import user_dir
from bento_tor.errors import ConfigError

RUNNING = "running"
# Sessions that have ended are kept for their logs: this many, the newest.
MAX_ENDED = 32


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function at a box: its tokens, and the call that it runs by default."""

    box: str
    invocation: bytes
    shutdown: bytes | None = None
    entry: str = ""


class KeptSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session at a box, and how much of its output (in units) has been read.

    state  as last known: RUNNING, or the word of its outcome
    log    what the function printed, as the box told it at the end
    once   its function is erased when it has ended: `client run` made both
    pid    the command here that was attached to it; 0: none"""

    box: str
    function: str
    session: bytes
    offset: int = 0
    input_sent: int = 0
    state: str = RUNNING
    log: bytes = b""
    once: bool = False
    pid: int = 0


class Keyring(msgspec.Struct, forbid_unknown_fields=True):
    """All of it, by name. `policies`: box -> digest of the policy that was accepted; `signed`: boxes that signed it;
    `reconnects`: when (seconds since 1970) connections to a box that broke were made again; `pins`: box, named by its
    relay -> the onion address that signed its policy when it was first seen."""

    functions: dict[str, Kept] = {}
    sessions: dict[str, KeptSession] = {}
    policies: dict[str, bytes] = {}
    signed: list[str] = []
    reconnects: dict[str, list[float]] = {}
    pins: dict[str, str] = {}

    def free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted-2` and so on where it is taken."""
        name, number = wanted, 1
        while name in self.functions or name in self.sessions:
            number += 1
            name = f"{wanted}-{number}"
        return name

    def add_session(self, of: str, kept: KeptSession) -> str:
        """Keep a session of the function (or call) `of`; the name it got: `of.1` and so on."""
        number = 1
        while (name := f"{of}.{number}") in self.sessions or name in self.functions:
            number += 1
        self.sessions[name] = kept
        return name

    def maybe_session(self, box: str, token: bytes) -> str | None:
        """The name of the session of this token."""
        found = (name for name, kept in self.sessions.items() if (kept.box, kept.session) == (box, token))
        return next(found, None)

    def end_session(self, name: str, state: str, log: bytes, offset: int) -> None:
        """It has ended, its output read up to `offset`. Its log stays, until newer ones have taken its place."""
        kept = self.sessions.pop(name)
        self.sessions[name] = msgspec.structs.replace(
            kept, state=state, log=log, pid=0, offset=max(kept.offset, offset)
        )
        ended = [key for key, value in self.sessions.items() if value.state != RUNNING]
        for key in ended[:-MAX_ENDED]:
            del self.sessions[key]

    def forget(self, name: str) -> None:
        """Everything under this name: a function, a session, or what is known of a box."""
        self.functions.pop(name, None)
        self.sessions.pop(name, None)
        self.policies.pop(name, None)
        self.reconnects.pop(name, None)
        self.pins.pop(name, None)
        if name in self.signed:
            self.signed.remove(name)

    def boxes(self) -> list[str]:
        """Every box that it knows of."""
        kept: list[Kept | KeptSession] = [*self.functions.values(), *self.sessions.values()]
        return sorted({*(each.box for each in kept), *self.policies, *self.pins})


def check_name(name: str) -> str:
    """`name` itself. Raises ConfigError where a command could not take it: @FILE, - and tickets are no names."""
    if not name.isprintable() or name.startswith(("-", "@", "bento1:")) or not name.strip():
        raise ConfigError(f"{name!r} cannot be a name in the keyring", hint="give another one with --name")
    return name


def keyring_path() -> Path:
    """BENTO_TOR_KEYRING, or keyring.json in the user's data folder."""
    return Path(os.environ.get("BENTO_TOR_KEYRING") or user_dir() / "keyring.json")


def read() -> Keyring:
    """The keyring; an empty one where there is none yet."""
    path = keyring_path()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Keyring()
    except OSError as why:
        raise ConfigError(f"cannot read the keyring {path}: {why.strerror}", hint="set BENTO_TOR_KEYRING") from why
    if not data and not path.is_file():
        # /dev/null, most likely; writing would put a file in its place.
        raise ConfigError(f"the keyring {path} is no file", hint="to remember nothing there is --no-keyring")
    try:
        return msgspec.json.decode(data, type=Keyring)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise ConfigError(f"the keyring {path} is damaged: {why}", hint="move it away to start a new one") from why


@contextmanager
def changing() -> Iterator[Keyring]:
    """The keyring, to be changed in the block and written at its end; nothing is written where the block fails."""
    path = keyring_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as why:
        raise ConfigError(
            f"cannot write the keyring {path}: {why.strerror}",
            hint="use --no-keyring, or set BENTO_TOR_KEYRING",
        ) from why
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keyring = read()
        yield keyring
        _write(path, msgspec.json.format(msgspec.json.encode(keyring)))
    finally:
        os.close(lock)


class KeptLedger:
    """Where the reconnections to `box` are counted for all of the user's processes (a `retries.Ledger`)."""

    def __init__(self, box: str) -> None:
        self._box = box

    @contextmanager
    def changing(self) -> Iterator[list[float]]:
        """Their times, to be changed in the block."""
        with changing() as ring:
            yield ring.reconnects.setdefault(self._box, [])


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as why:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write the keyring {path}: {why.strerror}") from why
