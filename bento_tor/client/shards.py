"""A file over N boxes, of which any K give it back: cut, sealed, and each shard in a drop box of its own.

The boxes learn nothing of one another: tokens and keys come from the ticket's secret, one each, and every box is
reached by circuits of its own. Each chunk of each shard is authenticated as it comes: it is known which box lied, and
what is put together has been put there. Owns the ticket, and what becomes of each stripe of the file. Pure: `spooling`
reads and writes files, `spreading` moves shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from bento_tor.client.coding import MOST_SHARDS, Code
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
from bento_tor.errors import ConfigError

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


def salt_of(secret: bytes) -> bytes:
    """Of a shard's own secret alone: one that is the same everywhere would let boxes find each other."""
    return salt_for(secret, b"")


class Hash(Protocol):
    """SHA-256, as hashlib has it."""

    def update(self, data: bytes | memoryview, /) -> object:
        """The next bytes."""

    def digest(self) -> bytes:
        """Of all of them."""


class Cutter:
    """Cuts and seals a file, stripe by stripe."""

    def __init__(self, ticket: ShardTicket, digest: Hash) -> None:
        self._code = ticket.code
        self._digest = digest
        secrets = [ticket.drop(number).secret for number in range(self._code.shards)]
        self._sealers = [Sealer(secret, salt_of(secret)) for secret in secrets]
        self._chunks = 0

    def cut(self, stripe: bytes, *, last: bool) -> list[list[bytes]]:
        """Of each shard the next sealed chunks. An empty file has one stripe, which is empty."""
        self._digest.update(stripe)
        fragments = self._code.encode(stripe) if stripe else [memoryview(b"")] * self._code.shards
        starts = range(0, len(fragments[0]) or 1, CHUNK_BYTES)
        first, self._chunks = self._chunks, self._chunks + len(starts)
        return [
            [
                sealer.seal(first + at, fragment[start : start + CHUNK_BYTES], last=last and start == starts[-1])
                for at, start in enumerate(starts)
            ]
            for sealer, fragment in zip(self._sealers, fragments, strict=True)
        ]


class Joiner:
    """Opens and puts together what was cut, from the shards of these numbers."""

    def __init__(self, ticket: ShardTicket, numbers: Iterable[int], digest: Hash) -> None:
        self._code = ticket.code
        self._digest = digest
        secrets = {number: ticket.drop(number).secret for number in numbers}
        self._openers = {number: Opener(secret, salt_of(secret)) for number, secret in secrets.items()}

    def sealed_bytes(self, stripe: int) -> int:
        """How many bytes of each shard belong to a stripe of so many."""
        return sealed_bytes(self._code.fragment_bytes(stripe)) if stripe else TAG_BYTES

    def join(self, sealed: Mapping[int, bytes], stripe: int, *, last: bool) -> bytes | memoryview:
        """The next stripe, of so many bytes. Raises NotWhatWasPut."""
        fragments = {number: self._openers[number].open_all(data, last=last) for number, data in sealed.items()}
        whole = self._code.decode(fragments, stripe) if stripe else b""
        self._digest.update(whole)
        return whole
