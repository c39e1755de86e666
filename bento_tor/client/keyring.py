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


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function at a box: its tokens, and the call that it runs by default."""

    box: str
    invocation: bytes
    shutdown: bytes | None = None
    entry: str = ""


class KeptSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session at a box, and how much of its output (in units) has been read."""

    box: str
    function: str
    session: bytes
    offset: int = 0
    input_sent: int = 0


class Keyring(msgspec.Struct, forbid_unknown_fields=True):
    """All of it, by name. `policies`: box -> digest of the policy that was accepted; `signed`: boxes that signed it."""

    functions: dict[str, Kept] = {}
    sessions: dict[str, KeptSession] = {}
    policies: dict[str, bytes] = {}
    signed: list[str] = []

    def free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted-2` and so on where it is taken."""
        name, number = wanted, 1
        while name in self.functions or name in self.sessions:
            number += 1
            name = f"{wanted}-{number}"
        return name


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
        raise ConfigError(f"cannot read the keyring {path}: {why.strerror}") from why
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
