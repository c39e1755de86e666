"""Any K of N fragments give the stripe back; what is no way to cut is said."""

from __future__ import annotations

import os
import random
from itertools import combinations

import pytest

from bento_tor.client.coding import FRAGMENT_BYTES, Code
from bento_tor.errors import BentoError, ConfigError


@pytest.mark.parametrize(("shards", "needed"), [(2, 1), (5, 1), (5, 3), (6, 4), (8, 3), (10, 5)])
def test_every_choice_of_as_many_as_are_needed_will_do(shards: int, needed: int) -> None:
    code = Code(shards, needed)
    for size in (1, 1000, code.stripe_bytes):
        stripe = os.urandom(size)
        fragments = dict(enumerate(map(bytes, code.encode(stripe))))
        assert {len(fragment) for fragment in fragments.values()} == {code.shard_bytes(size)}
        for chosen in combinations(range(shards), needed):
            assert bytes(code.decode({number: [fragments[number]] for number in chosen}, size)) == stripe


def test_many_shards_with_much_lost() -> None:
    """With Vandermonde matrices some of these cannot be decoded."""
    chance = random.Random(1)
    for shards, needed in ((32, 20), (32, 2), (32, 31), (20, 10)):
        code = Code(shards, needed)
        stripe = chance.randbytes(5000)
        fragments = list(map(bytes, code.encode(stripe)))
        for _ in range(40):
            chosen = chance.sample(range(shards), needed)
            assert bytes(code.decode({number: [fragments[number]] for number in chosen}, 5000)) == stripe


def test_the_lengths_of_shards() -> None:
    code = Code(5, 3)
    assert (code.shard_bytes(0), code.stripes(0)) == (0, [])
    assert code.shard_bytes(10 * code.stripe_bytes) == 10 * FRAGMENT_BYTES
    size = 2 * code.stripe_bytes + 100
    assert code.stripes(size) == [code.stripe_bytes] * 2 + [100]
    assert code.shard_bytes(size) == 2 * FRAGMENT_BYTES + code.fragment_bytes(100)


@pytest.mark.parametrize(("shards", "needed"), [(1, 1), (5, 0), (5, 5), (5, 6), (33, 3), (5, -1)])
def test_what_cannot_be_cut_is_said(shards: int, needed: int) -> None:
    with pytest.raises(ConfigError, match="cannot be cut"):
        Code(shards, needed)


def test_a_fragment_of_another_length_never_reaches_the_library() -> None:
    code = Code(3, 2)
    for length in (0, FRAGMENT_BYTES - 1, FRAGMENT_BYTES + 1):
        with pytest.raises(BentoError):
            code.decode({1: [bytes(length)], 2: [bytes(FRAGMENT_BYTES)]}, code.stripe_bytes)


def test_the_code_is_for_good() -> None:
    """What was cut with an older version is put together with a newer one."""
    assert bytes(Code(3, 2).encode(bytes(range(32)))[2]).hex() == "fb810f750e74fa800c76f882f9830d77"
