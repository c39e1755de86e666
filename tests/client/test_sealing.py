"""Sealed files: what may not be swapped, cut, added or read without the secret."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bento_tor.client.sealing import (
    CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    NotWhatWasPut,
    Opener,
    Sealer,
    derive,
    plain_bytes,
    salt_for,
    sealed_bytes,
)

SECRET, SALT = b"s" * 32, b"n" * 32


def seal(data: bytes, secret: bytes = SECRET, salt: bytes = SALT) -> bytes:
    sealer = Sealer(secret, salt)
    starts = range(0, max(1, len(data)), CHUNK_BYTES)
    return b"".join(
        sealer.seal(number, data[at : at + CHUNK_BYTES], last=at == starts[-1]) for number, at in enumerate(starts)
    )


def opened(data: bytes, *, cuts: list[int] | None = None, first: int = 0) -> bytes:
    opener = Opener(SECRET, SALT, first=first)
    edges = [0, *sorted(cuts or []), len(data)]
    chunks = [chunk for a, b in pairwise(edges) for chunk in opener.feed(data[a:b])]
    chunks.append(opener.finish())
    assert b"".join(chunk.sealed for chunk in chunks) == data
    return b"".join(chunk.plain for chunk in chunks)


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]


@pytest.mark.parametrize("size", SIZES)
def test_it_comes_back_however_it_is_cut_on_the_way(size: int) -> None:
    data = os.urandom(size)
    sealed = seal(data)
    assert len(sealed) == sealed_bytes(size) and plain_bytes(len(sealed)) == size
    assert opened(sealed) == data
    for step in (1000, CHUNK_BYTES, SEALED_CHUNK_BYTES, SEALED_CHUNK_BYTES + 1):
        assert opened(sealed, cuts=list(range(0, len(sealed), step))) == data
    for first in range(size // CHUNK_BYTES):
        assert opened(sealed[first * SEALED_CHUNK_BYTES :], first=first) == data[first * CHUNK_BYTES :]


DATA = os.urandom(3 * CHUNK_BYTES + 100)
SEALED = seal(DATA)
C = SEALED_CHUNK_BYTES
ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "cut off at a chunk": lambda s: s[: 2 * C],
    "cut off in a chunk": lambda s: s[: 2 * C + 50],
    "cut off by one": lambda s: s[:-1],
    "nothing": lambda s: b"",
    "the last chunk alone": lambda s: s[3 * C :],
    "chunks swapped": lambda s: s[C : 2 * C] + s[:C] + s[2 * C :],
    "a chunk left out": lambda s: s[:C] + s[2 * C :],
    "a chunk twice": lambda s: s[:C] + s,
    "something added": lambda s: s + b"x",
    "a chunk added": lambda s: s + s[:C],
    "another file's chunk": lambda s: seal(DATA, salt=b"o" * 32)[:C] + s[C:],
    "another secret": lambda s: seal(DATA, secret=b"t" * 32),
    "the last chunk as an inner one": lambda s: s + s[3 * C :],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_what_was_sealed_is_not_opened(name: str) -> None:
    with pytest.raises(NotWhatWasPut):
        opened(ATTACKS[name](SEALED))


@settings(max_examples=60)
@given(at=st.integers(0, len(SEALED) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(at: int, bit: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= 1 << bit
    came = b""
    with pytest.raises(NotWhatWasPut):
        opener = Opener(SECRET, SALT)
        for chunk in opener.feed(bytes(changed)):
            came += chunk.plain
        opener.finish()
    assert DATA.startswith(came) and len(came) <= at, "and nothing behind it came out"


@pytest.mark.parametrize("size", [0, 15, C + 1, C + 15, C + 16, 3 * C + 16])
def test_a_length_that_no_sealed_file_has_is_refused(size: int) -> None:
    with pytest.raises(NotWhatWasPut):
        plain_bytes(size)


def test_files_never_meet_under_one_key_and_the_salt_tells_nothing_without_the_secret() -> None:
    one, other = (hashlib.sha256(data).digest() for data in (b"one", b"other"))
    assert len({salt_for(SECRET, one), salt_for(SECRET, other), salt_for(b"t" * 32, one), one}) == 4
    assert len({derive(SECRET, "a"), derive(SECRET, "b"), derive(b"t" * 32, "a"), SECRET}) == 4
    # The form is for good: what was put with an older version opens with a newer one.
    fixed = Sealer(bytes(32), bytes(32)).seal(0, b"hello", last=True)
    assert fixed.hex() == "ea233d002cff474e4987e4a806c517792002d44db4"
