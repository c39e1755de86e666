"""A file over N boxes, of which any K give it back: cut, sealed, and each shard in a drop box of its own.

The boxes learn nothing of one another: tokens and keys come from the ticket's secret, one each, and every box is
reached by circuits of its own. Each chunk of each shard is authenticated as it comes: it is known which box lied, and
what is put together has been put there. Owns the ticket, and the shards on the user's disk; `spreading` moves them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from bento_tor.client.coding import FRAGMENT_BYTES, MOST_SHARDS, Code
from bento_tor.client.files import Digest, reading, require_same, require_whole, seen, writing
from bento_tor.client.sealing import (
    CHUNK_BYTES,
    SECRET_BYTES,
    TAG_BYTES,
    Opener,
    Sealer,
    derive,
    salt_for,
    sealed_bytes,
)
from bento_tor.client.tickets import DropTicket, encode_secret, split
from bento_tor.errors import BentoError, ConfigError

_READ_BYTES = 256 * 1024
_MOST_BYTES = 1 << 50
MARK_BYTES = 16
_HINT = "it looks like bento1:<box>,<box>,...:shard-<needed>-<bytes>:<secret>"


class ShardTicket(msgspec.Struct, frozen=True):
    """What gives a file back: its boxes, how many are needed, its length, the secret of which all else comes, and by
    what the file is known when it is whole again."""

    boxes: tuple[str, ...]
    needed: int
    file_bytes: int
    secret: bytes
    mark: bytes = b""

    def __str__(self) -> str:
        word = f"shard-{self.needed}-{self.file_bytes}"
        return f"bento1:{','.join(self.boxes)}:{word}:{encode_secret(self.secret + self.mark)}"

    def __repr__(self) -> str:
        return f"ShardTicket({len(self.boxes)} boxes, ...)"

    @property
    def code(self) -> Code:
        """How the file is cut. Raises ConfigError."""
        return Code(len(self.boxes), self.needed)

    def mark_of(self, file_digest: bytes) -> bytes:
        """What `mark` is for the file of this digest."""
        return salt_for(self.secret, file_digest)[:MARK_BYTES]

    def drop(self, number: int) -> DropTicket:
        """The drop box of one shard."""
        token, secret = (derive(self.secret, f"shard {number} {word}") for word in ("token", "secret"))
        return DropTicket(self.boxes[number], token, secret)


def parse(text: str) -> ShardTicket:
    """Raises ConfigError where the text is no ticket of shards."""
    boxes, word, secret = split(text, hint=_HINT)
    parts = word.split("-")
    numbers = [int(part) for part in parts[1:] if part.isascii() and part.isdigit() and len(part) <= 16]
    if parts[0] != "shard" or len(parts) != 3 or len(numbers) != 2 or len(secret) != SECRET_BYTES + MARK_BYTES:
        raise ConfigError("this is not the ticket of a file in shards, or it is damaged", hint=_HINT)
    names = tuple(boxes.split(","))
    ticket = ShardTicket(names, numbers[0], numbers[1], secret[:SECRET_BYTES], secret[SECRET_BYTES:])
    check(ticket)
    return ticket


def check(ticket: ShardTicket) -> None:
    """Raises ConfigError where no file can be cut like that."""
    if len(set(ticket.boxes)) != len(ticket.boxes) or not all(ticket.boxes):
        raise ConfigError("each shard needs a box of its own", hint="name each box once")
    if not 1 <= ticket.needed < len(ticket.boxes) <= MOST_SHARDS or ticket.file_bytes > _MOST_BYTES:
        Code(len(ticket.boxes), ticket.needed)
        raise ConfigError(f"a file of {ticket.file_bytes} bytes cannot be cut")


def salt_of_shard(secret: bytes) -> bytes:
    """Of its own secret alone: one that is the same everywhere would let boxes find each other."""
    return salt_for(secret, b"")


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


def cut(path: Path, ticket: ShardTicket, folder: Path) -> tuple[ShardTicket, list[Spooled]]:
    """Cut and seal the file into `folder`: one file for each shard; the ticket with the file's mark. Needs memory for a
    stripe or two.

    Raises ConfigError where the file is not the one that a ticket with a mark is for: nothing else must ever be sealed,
    and sent, under its keys."""
    code = ticket.code
    names = [folder / str(number) for number in range(code.shards)]
    salts = [salt_of_shard(ticket.drop(number).secret) for number in range(code.shards)]
    with ExitStack() as stack:
        file = stack.enter_context(reading(path))
        stack.enter_context(writing(folder))
        digest = stack.enter_context(Digest())
        outs = [
            _Out(stack.enter_context(name.open("xb", buffering=0)), Sealer(ticket.drop(number).secret, salt))
            for number, (name, salt) in enumerate(zip(names, salts, strict=True))
        ]
        before = seen(file)
        stripes = code.stripes(ticket.file_bytes)
        for at, length in enumerate(stripes):
            stripe = file.read(length)
            require_same(path, len(stripe) == length)
            digest.update(stripe)
            for out, fragment in zip(outs, code.encode(stripe), strict=True):
                out.write(fragment, last=at == len(stripes) - 1)
        if not stripes:
            for out in outs:
                out.write(memoryview(b""), last=True)
        require_same(path, seen(file) == before and not file.read(1))
        mark = ticket.mark_of(digest.digest())
    if ticket.mark not in (b"", mark):
        raise ConfigError(f"{path} is not the file that this ticket is for", hint="put it under a new ticket")
    size = sealed_bytes(code.shard_bytes(ticket.file_bytes))
    spooled = [Spooled(name, size, salt) for name, salt in zip(names, salts, strict=True)]
    return msgspec.structs.replace(ticket, mark=mark), spooled


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


def join(shards: Mapping[int, Path], ticket: ShardTicket, path: Path) -> None:
    """Put the file together from sealed shards, by their numbers. `path` is written, and is whole when this returns.

    Raises BentoError where it is not the file that was cut; then what was written is gone."""
    code = ticket.code
    stripes = code.stripes(ticket.file_bytes)
    try:
        with ExitStack() as stack:
            sources = {
                number: _In(stack.enter_context(reading(shard)), ticket.drop(number).secret)
                for number, shard in shards.items()
            }
            stack.enter_context(writing(path))
            digest = stack.enter_context(Digest())
            out = stack.enter_context(os.fdopen(os.open(path, _NEW, 0o600), "wb", buffering=0))
            for at, length in enumerate(stripes):
                size = code.fragment_bytes(length) if length < code.stripe_bytes else FRAGMENT_BYTES
                last = at == len(stripes) - 1
                stripe = code.decode({n: source.read(size, last=last) for n, source in sources.items()}, length)
                digest.update(stripe)
                require_whole(out.write(stripe), length)
            if ticket.mark_of(digest.digest()) != ticket.mark:
                raise BentoError("the shards do not make up the file: they were put like that")
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class _In:
    """Where one shard comes from."""

    def __init__(self, file: BinaryIO, secret: bytes) -> None:
        self._file, self._opener = file, Opener(secret, salt_of_shard(secret))

    def read(self, size: int, *, last: bool) -> list[bytes]:
        """The next fragment, in pieces. Raises NotWhatWasPut."""
        chunks = -(-size // CHUNK_BYTES)
        sealed = self._file.read(size + chunks * TAG_BYTES)
        return self._opener.open_all(sealed, last=last)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
