"""A file as N shards of which any K give it back: Reed-Solomon over stripes, by ISA-L through liberasurecode. Pure.

Cauchy matrices: with Vandermonde ones, which are the library's usual choice, not every K of N would do. The library
puts a header before each fragment and believes it when it decodes; ours travel without, and get the one that they must
have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from pyeclib.ec_iface import ECDriver, ECDriverError

from bento_tor.errors import BentoError, ConfigError

# What the library can do.
MOST_SHARDS = 32
# Of one shard and one stripe. Small enough for the processor's cache, and whole chunks of a sealed file.
FRAGMENT_BYTES = 128 * 1024
_HEADER_BYTES = 80


class Code:
    """One way to cut: `needed` of `shards`."""

    def __init__(self, shards: int, needed: int) -> None:
        """Raises ConfigError for what cannot be."""
        if not 1 <= needed < shards <= MOST_SHARDS:
            raise ConfigError(
                f"a file cannot be cut into {shards} shards of which {needed} give it back",
                hint=f"at most {MOST_SHARDS} shards, and fewer needed than there are",
            )
        self.shards = shards
        self.needed = needed
        self.stripe_bytes = needed * FRAGMENT_BYTES
        self._driver = ECDriver(k=needed, m=shards - needed, ec_type="isa_l_rs_cauchy")
        self._headers = lru_cache(maxsize=4)(self._make_headers)

    def stripes(self, file_bytes: int) -> list[int]:
        """How many bytes of the file are in each stripe: all the same, but the last."""
        whole, rest = divmod(file_bytes, self.stripe_bytes)
        return [self.stripe_bytes] * whole + ([rest] if rest else [])

    def shard_bytes(self, file_bytes: int) -> int:
        """How long each shard is."""
        whole, rest = divmod(file_bytes, self.stripe_bytes)
        return whole * FRAGMENT_BYTES + (self.fragment_bytes(rest) if rest else 0)

    def fragment_bytes(self, stripe: int) -> int:
        """How long a fragment of a stripe of so many bytes is."""
        return self._headers(stripe)[0]

    def encode(self, stripe: bytes) -> list[memoryview]:
        """One fragment for each shard."""
        return [memoryview(fragment)[_HEADER_BYTES:] for fragment in self._driver.encode(stripe)]

    def decode(self, fragments: Mapping[int, Sequence[bytes]], stripe: int) -> bytes | memoryview:
        """The stripe of so many bytes, from `needed` fragments or more, by the numbers of their shards, each in pieces.
        Each must be known to be what was encoded: nothing tells wrong ones."""
        chosen = sorted(fragments)[: self.needed]
        length, headers = self._headers(stripe)
        if any(sum(map(len, fragments[number])) != length for number in chosen):
            raise BentoError("a fragment has not the length that it must have")
        if len(chosen) == self.needed == chosen[-1] + 1:
            return memoryview(b"".join(piece for number in chosen for piece in fragments[number]))[:stripe]
        try:
            whole: bytes = self._driver.decode([b"".join((headers[number], *fragments[number])) for number in chosen])
        except ECDriverError as why:
            raise BentoError(f"the shards cannot be put together: {why}") from why
        return whole

    def _make_headers(self, stripe: int) -> tuple[int, list[bytes]]:
        """The length of a fragment, and the header of each: they tell lengths and numbers, nothing of the content."""
        fragments = self._driver.encode(bytes(stripe))
        return len(fragments[0]) - _HEADER_BYTES, [fragment[:_HEADER_BYTES] for fragment in fragments]
