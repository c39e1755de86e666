"""A file over N boxes, of which any K give it back: cut, sealed, and each shard in a drop box of its own.

The boxes learn nothing of one another: tokens and keys come from the ticket's secret, one each, and every box is
reached by circuits of its own. Each chunk of each shard is authenticated as it comes: it is known which box lied, and
what is put together has been put there. Owns the ticket, and the shards on the user's disk; `spreading` moves them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from bento_tor.client.coding import FRAGMENT_BYTES, MOST_SHARDS, Code
from bento_tor.client.files import digest_of, reading, require_same, require_whole, seen, writing
from bento_tor.client.sealing import CHUNK_BYTES, SECRET_BYTES, Sealer, derive, salt_for, sealed_bytes
from bento_tor.client.tickets import DropTicket, encode_secret, split
from bento_tor.errors import BentoError, ConfigError

_READ_BYTES = 256 * 1024
_MOST_BYTES = 1 << 50
_HINT = "it looks like bento1:<box>,<box>,...:shard-<needed>-<bytes>:<secret>"


class ShardTicket(msgspec.Struct, frozen=True):
    """What gives a file back: its boxes, how many are needed, its length, and the secret of which all else comes."""

    boxes: tuple[str, ...]
    needed: int
    file_bytes: int
    secret: bytes

    def __str__(self) -> str:
        word = f"shard-{self.needed}-{self.file_bytes}"
        return f"bento1:{','.join(self.boxes)}:{word}:{encode_secret(self.secret)}"

    def __repr__(self) -> str:
        return f"ShardTicket({len(self.boxes)} boxes, ...)"

    @property
    def code(self) -> Code:
        """How the file is cut. Raises ConfigError."""
        return Code(len(self.boxes), self.needed)

    def drop(self, number: int) -> DropTicket:
        """The drop box of one shard."""
        token, secret = (derive(self.secret, f"shard {number} {word}") for word in ("token", "secret"))
        return DropTicket(self.boxes[number], token, secret)


def parse(text: str) -> ShardTicket:
    """Raises ConfigError where the text is no ticket of shards."""
    boxes, word, secret = split(text, hint=_HINT)
    parts = word.split("-")
    numbers = [int(part) for part in parts[1:] if part.isascii() and part.isdigit() and len(part) <= 16]
    if parts[0] != "shard" or len(parts) != 3 or len(numbers) != 2 or len(secret) != SECRET_BYTES:
        raise ConfigError("this is not the ticket of a file in shards, or it is damaged", hint=_HINT)
    ticket = ShardTicket(tuple(boxes.split(",")), numbers[0], numbers[1], secret)
    check(ticket)
    return ticket


def check(ticket: ShardTicket) -> None:
    """Raises ConfigError where no file can be cut like that."""
    if len(set(ticket.boxes)) != len(ticket.boxes) or not all(ticket.boxes):
        raise ConfigError("each shard needs a box of its own", hint="name each box once")
    if not 1 <= ticket.needed < len(ticket.boxes) <= MOST_SHARDS or ticket.file_bytes > _MOST_BYTES:
        Code(len(ticket.boxes), ticket.needed)
        raise ConfigError(f"a file of {ticket.file_bytes} bytes cannot be cut")


@dataclass(frozen=True)
class Spooled:
    """One sealed shard on disk. A `dropbox.Sealed`."""

    path: Path
    size: int
    header: bytes

    def pieces(self, start: int) -> Iterator[bytes]:
        """See `dropbox.Sealed`."""
        with reading(self.path) as file:
            file.seek(start)
            while data := file.read(_READ_BYTES):
                yield data


def digest(path: Path) -> tuple[bytes, int]:
    """SHA-256 of a file, and its length."""
    with reading(path) as file:
        return digest_of(file), seen(file)[0]


def cut(path: Path, file_digest: bytes, ticket: ShardTicket, folder: Path) -> list[Spooled]:
    """Cut and seal the file into `folder`: one file for each shard. Needs memory for a stripe or two.

    Raises ConfigError where the file is not what it was when its digest was taken."""
    code = ticket.code
    names = [folder / str(number) for number in range(code.shards)]
    headers = [salt_for(ticket.drop(number).secret, file_digest) for number in range(code.shards)]
    with ExitStack() as stack:
        file = stack.enter_context(reading(path))
        stack.enter_context(writing(folder))
        outs = [
            _Out(stack.enter_context(name.open("xb", buffering=0)), Sealer(ticket.drop(number).secret, header))
            for number, (name, header) in enumerate(zip(names, headers, strict=True))
        ]
        before = seen(file)
        stripes = code.stripes(ticket.file_bytes)
        for at, length in enumerate(stripes):
            stripe = file.read(length)
            require_same(path, len(stripe) == length)
            for out, fragment in zip(outs, code.encode(stripe), strict=True):
                out.write(fragment, last=at == len(stripes) - 1)
        if not stripes:
            for out in outs:
                out.write(memoryview(b""), last=True)
        require_same(path, seen(file) == before and not file.read(1))
    size = sealed_bytes(code.shard_bytes(ticket.file_bytes))
    return [Spooled(name, size, header) for name, header in zip(names, headers, strict=True)]


class _Out:
    """Where one shard goes."""

    def __init__(self, file: BinaryIO, sealer: Sealer) -> None:
        self._file, self._sealer, self._number = file, sealer, 0

    def write(self, fragment: memoryview, *, last: bool) -> None:
        starts = range(0, len(fragment) or 1, CHUNK_BYTES)
        sealed = [
            self._sealer.seal(
                self._number + at, fragment[start : start + CHUNK_BYTES], last=last and start == starts[-1]
            )
            for at, start in enumerate(starts)
        ]
        self._number += len(sealed)
        require_whole(os.writev(self._file.fileno(), sealed), sum(map(len, sealed)))


def join(shards: Mapping[int, Path], ticket: ShardTicket, headers: Mapping[int, bytes], path: Path) -> None:
    """Put the file together from opened shards, by their numbers. `path` is written, and is whole when this returns.

    Raises BentoError where it is not the file that was cut; then what was written is gone."""
    code = ticket.code
    lengths = {number: shard.stat().st_size for number, shard in shards.items()}
    wanted = code.shard_bytes(ticket.file_bytes)
    for number, length in lengths.items():
        if length != wanted:
            raise BentoError(f"the shard of {ticket.boxes[number]} has {length} bytes, not {wanted}")
    try:
        with ExitStack() as stack:
            files = {number: stack.enter_context(reading(shard)) for number, shard in shards.items()}
            stack.enter_context(writing(path))
            out = stack.enter_context(os.fdopen(os.open(path, _NEW, 0o600), "wb", buffering=0))
            _check(_pour(files, code, ticket.file_bytes, out), ticket, headers)
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def _pour(files: Mapping[int, BinaryIO], code: Code, file_bytes: int, out: BinaryIO) -> bytes:
    """Decode stripe by stripe; the digest of what came of it."""
    whole = hashlib.sha256()
    for length in code.stripes(file_bytes):
        size = code.fragment_bytes(length) if length < code.stripe_bytes else FRAGMENT_BYTES
        stripe = code.decode({number: file.read(size) for number, file in files.items()}, length)
        whole.update(stripe)
        require_whole(out.write(stripe), length)
    return whole.digest()


def _check(file_digest: bytes, ticket: ShardTicket, headers: Mapping[int, bytes]) -> None:
    for number, header in headers.items():
        if salt_for(ticket.drop(number).secret, file_digest) != header:
            raise BentoError("the shards are not of one file: one was damaged on this disk, or put there like that")
