"""A function on its way to a box: what is said of it, once or again. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from bento_tor.client.source import Source
from bento_tor.policy import manifest as manifests
from bento_tor.protocol import messages as m


@dataclass(frozen=True)
class Upload:
    """One function under its tokens. The same said twice is stored once."""

    source: Source
    invocation: bytes
    shutdown: bytes

    @property
    def code(self) -> bytes:
        """What is stored."""
        return self.source.text.encode()

    @property
    def is_big(self) -> bool:
        """The box keeps a part of it where the connection breaks (the protocol's rule 11)."""
        return len(self.code) > m.MAX_DATA_BYTES

    def store(self, channel: int) -> m.Store:
        """Its announcement."""
        code = self.code
        digest = hashlib.sha256(code).digest()
        return m.Store(
            channel, self.invocation, self.shutdown, manifests.encode(self.source.manifest), len(code), digest
        )

    def chunks(self, channel: int, start: int) -> Iterator[m.Chunk]:
        """Its bytes from `start` on."""
        code = self.code
        for at in range(start, len(code), m.MAX_DATA_BYTES):
            yield m.Chunk(channel, at, code[at : at + m.MAX_DATA_BYTES])
