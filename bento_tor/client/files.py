"""Files on the user's disk that go into drop boxes, and that come out of them. Owns their reading and writing, and what
is left beside a file that has not come whole: enough to go on with the same get, in another process too."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from bento_tor.client.sealing import (
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    Chunk,
    NotWhatWasPut,
    Sealer,
    salt_for,
    sealed_bytes,
)
from bento_tor.errors import ConfigError

_READ_BYTES = 1024 * 1024
# Chunks in one message.
_TOGETHER = 4


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A file to be read. Raises ConfigError where it cannot be, also in the middle."""
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}") from why


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While something is written. Raises ConfigError where it cannot be."""
    try:
        yield
    except OSError as why:
        raise ConfigError(f"cannot write {path}: {why.strerror}") from why


def require_whole(written: int, wanted: int) -> None:
    """A disk that is nearly full takes a part and says no word. Raises OSError."""
    if written != wanted:
        raise OSError(errno.ENOSPC, "the disk took only part of it")


def length_of(path: Path) -> int:
    """How long a file is. Raises ConfigError where it is none that can be read."""
    with reading(path) as file:
        return seen(file)[0]


class Digest:
    """SHA-256 in a thread of its own, beside the work on the same bytes; no more than one piece waits. A context
    manager."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, "digest")
        self._last: Future[None] | None = None

    def __enter__(self) -> Digest:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()

    def update(self, data: bytes | memoryview) -> None:
        """The next piece, which must not change."""
        self._wait()
        self._last = self._pool.submit(self._hash.update, data)

    def digest(self) -> bytes:
        """Of all of them."""
        self._wait()
        return self._hash.digest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()


def digest_of(file: BinaryIO) -> bytes:
    """SHA-256 of the rest of a file."""
    digest = hashlib.sha256()
    while data := file.read(_READ_BYTES):
        digest.update(data)
    return digest.digest()


def require_same(path: Path, same: bool) -> None:
    """Raises ConfigError: what was said of the file is not true any more."""
    if not same:
        raise ConfigError(f"{path} was changed while it was read", hint="put it once more")


class SealedFile:
    """A file, sealed as it is read: nothing of it is written anywhere. A `dropbox.Sealed`."""

    def __init__(self, path: Path, secret: bytes) -> None:
        """Reads it once, for its digest. Raises ConfigError."""
        self._path = path
        with reading(path) as file:
            self._seen = seen(file)
            self.header = salt_for(secret, digest_of(file))
        self._sealer = Sealer(secret, self.header)
        self._plain_bytes = self._seen[0]
        self.size = sealed_bytes(self._plain_bytes)

    def pieces(self, start: int) -> Iterator[bytes]:
        """See `dropbox.Sealed`. Raises ConfigError where the file is not what it was."""
        number, skip = divmod(start, SEALED_CHUNK_BYTES)
        last = max(0, -(-self._plain_bytes // CHUNK_BYTES) - 1)
        with reading(self._path) as file:
            file.seek(number * CHUNK_BYTES)
            while number <= last:
                data = memoryview(file.read(CHUNK_BYTES * _TOGETHER) or b"")
                until = min(last + 1, number + _TOGETHER)
                whole = min(self._plain_bytes, until * CHUNK_BYTES) - number * CHUNK_BYTES
                require_same(self._path, seen(file) == self._seen and len(data) == whole)
                chunks = [
                    self._sealer.seal(n, data[at : at + CHUNK_BYTES], last=n == last)
                    for n, at in zip(range(number, until), range(0, CHUNK_BYTES * _TOGETHER, CHUNK_BYTES), strict=False)
                ]
                yield b"".join(chunks)[skip:]
                number, skip = until, 0


class PartFile:
    """A file on its way in. A `dropbox.Sink`: chunks that were opened are appended; it gets its name at the end."""

    def __init__(self, path: Path, ticket: str, name: str, *, final: bool = True) -> None:
        """Goes on with what an earlier get of the same ticket has left. `name`: of the get, where there was none.
        `final`: it is what the user wants; a part of that stays sealed.

        Raises ConfigError, where the file is there already too."""
        self.chunks = 0
        self.path = path
        self._final = final
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        if path.exists():
            raise ConfigError(f"{path} is there already", hint="name another file with -o, or move it away")
        known = hashlib.sha256(ticket.encode()).hexdigest()
        self._left = self._read_note() or Left(known, name)
        if self._left.ticket != known:
            raise ConfigError(
                f"{self._part} is what another ticket's get has left", hint=f"finish that, or remove {self._note}"
            )
        self.name = self._left.name
        with writing(self._part):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            _write_note(self._note, self._left)
            self._file = os.fdopen(os.open(self._part, flags, 0o600), "r+b", buffering=0)
            self._digest = hashlib.sha256()
            self._take_up()

    def append(self, chunk: Chunk) -> None:
        """See `dropbox.Sink`."""
        data = chunk.plain if self._final else chunk.sealed
        with writing(self._part):
            require_whole(self._file.write(data), len(data))
        if self._final:
            self._digest.update(data)
        self.chunks += 1

    def finish(self, header: bytes, secret: bytes) -> None:
        """It is whole. Raises NotWhatWasPut where it is not the file that this header was made for: what had been left
        here was not part of it. That of a part is seen when all are put together."""
        if self._final and header != salt_for(secret, self._digest.digest()):
            self.chunks = 0
            self.close()
            raise NotWhatWasPut(f"{self._part} does not fit together")
        with writing(self.path):
            if self._final:
                os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self.path)
            self._note.unlink()

    def close(self) -> None:
        """What came stays, for the next time."""
        if not self._file.closed and not self.chunks:
            self._part.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
        self._file.close()

    def _take_up(self) -> None:
        """Count what is there; not the last chunk or two, which may not have reached the disk, or are in the piece
        that only a get has that is counted."""
        length = CHUNK_BYTES if self._final else SEALED_CHUNK_BYTES
        whole = max(0, os.fstat(self._file.fileno()).st_size // length - 1)
        self._file.truncate(whole * length)
        for _ in range(whole if self._final else 0):
            self._digest.update(self._file.read(length))
        self._file.seek(whole * length)
        self.chunks = whole

    def _read_note(self) -> Left | None:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=Left)
        except FileNotFoundError:
            self._part.unlink(missing_ok=True)
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as why:
            raise ConfigError(f"{self._note} cannot be used: {why}", hint="remove it to begin anew") from why


class Left(msgspec.Struct, frozen=True):
    """What is known of a get that is not done: whose it is, by the ticket's hash, and how the box knows it."""

    ticket: str
    name: str


def _write_note(path: Path, left: Left) -> None:
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(msgspec.json.encode(left))
    new.rename(path)


def seen(file: BinaryIO) -> tuple[int, int]:
    """What tells whether a file has been changed."""
    known = os.fstat(file.fileno())
    if not stat.S_ISREG(known.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return known.st_size, known.st_mtime_ns
