"""A file cut into sealed shards on the user's disk, and put together from them. Owns files; `shards` has the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bento_tor.client.files import Digest, reading, require_same, require_whole, seen, writing
from bento_tor.client.sealing import sealed_bytes
from bento_tor.client.shards import Cutter, Joiner, ShardTicket, salt_of
from bento_tor.errors import BentoError, ConfigError

_READ_BYTES = 256 * 1024
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


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
    with ExitStack() as stack:
        file = stack.enter_context(reading(path))
        stack.enter_context(writing(folder))
        digest = stack.enter_context(Digest())
        cutter = Cutter(ticket, digest)
        outs = [stack.enter_context(name.open("xb", buffering=0)) for name in names]
        before = seen(file)
        for length, last in _stripes(ticket):
            stripe = file.read(length)
            require_same(path, len(stripe) == length)
            for out, chunks in zip(outs, cutter.cut(stripe, last=last), strict=True):
                require_whole(os.writev(out.fileno(), chunks), sum(map(len, chunks)))
        require_same(path, seen(file) == before and not file.read(1))
        mark = ticket.mark_of(digest.digest())
    if ticket.mark not in (b"", mark):
        raise ConfigError(f"{path} is not the file that this ticket is for", hint="put it under a new ticket")
    size = sealed_bytes(code.shard_bytes(ticket.file_bytes))
    salts = [salt_of(ticket.drop(number).secret) for number in range(code.shards)]
    spooled = [Spooled(name, size, salt) for name, salt in zip(names, salts, strict=True)]
    return msgspec.structs.replace(ticket, mark=mark), spooled


def join(shards: Mapping[int, Path], ticket: ShardTicket, path: Path) -> None:
    """Put the file together from sealed shards, by their numbers. `path` is written, and is whole when this returns.

    Raises BentoError where it is not the file that was cut; then what was written is gone."""
    try:
        with ExitStack() as stack:
            files = {number: stack.enter_context(reading(shard)) for number, shard in shards.items()}
            stack.enter_context(writing(path))
            digest = stack.enter_context(Digest())
            joiner = Joiner(ticket, files, digest)
            out = stack.enter_context(os.fdopen(os.open(path, _NEW, 0o600), "wb", buffering=0))
            for length, last in _stripes(ticket):
                size = joiner.sealed_bytes(length)
                sealed = {number: file.read(size) for number, file in files.items()}
                require_whole(out.write(joiner.join(sealed, length, last=last)), length)
            if ticket.mark_of(digest.digest()) != ticket.mark:
                raise BentoError("the shards do not make up the file: they were put like that")
            os.fsync(out.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _stripes(ticket: ShardTicket) -> Iterator[tuple[int, bool]]:
    """The length of each, and whether it is the last."""
    lengths = ticket.code.stripes(ticket.file_bytes) or [0]
    for at, length in enumerate(lengths):
        yield length, at == len(lengths) - 1
