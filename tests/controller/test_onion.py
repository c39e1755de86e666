"""Onion keys and addresses, without a tor."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.controller import onion
from bento_tor.errors import ConfigError


@given(st.binary(min_size=32, max_size=32))
def test_each_seed_has_one_right_address(seed: bytes) -> None:
    address = onion.onion_address(seed)
    assert len(address) == 62
    assert onion.is_onion_address(address)
    assert onion.is_onion_address(address.removesuffix(".onion"))
    key = onion.expanded_key(seed)
    assert len(key) == 64
    assert key[0] & 7 == 0
    assert key[31] & 0xC0 == 0x40


@pytest.mark.parametrize("text", ["", "x.onion", "facebookcorewwwi.onion", "a" * 56, "A" * 56 + ".onion", "1" * 56])
def test_other_names_are_no_addresses(text: str) -> None:
    assert not onion.is_onion_address(text)


def test_a_changed_letter_is_noticed() -> None:
    address = onion.onion_address(bytes(32))
    changed = ("b" if address[0] == "a" else "a") + address[1:]
    assert not onion.is_onion_address(changed)


def test_a_seed_is_stored_once_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "seed"
    seed = onion.load_or_mint_seed(path)
    assert onion.load_or_mint_seed(path) == seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError):
        onion.store_seed(path, onion.mint_seed())
    assert onion.load_seed(path) == seed


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "seed"
    onion.store_seed(path, onion.mint_seed())
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others may use"):
        onion.load_seed(path)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_no_key(tmp_path: Path, size: int) -> None:
    path = tmp_path / "seed"
    onion.store_seed(path, os.urandom(size))
    with pytest.raises(ConfigError, match="no onion key"):
        onion.load_or_mint_seed(path)


def test_a_link_to_a_key_is_refused(tmp_path: Path) -> None:
    onion.store_seed(tmp_path / "seed", onion.mint_seed())
    (tmp_path / "link").symlink_to(tmp_path / "seed")
    with pytest.raises(ConfigError):
        onion.load_seed(tmp_path / "link")


def test_a_key_is_placed_whole_and_never_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    assert onion.maybe_place_key(folder, bytes(32))
    assert folder.stat().st_mode & 0o777 == 0o700
    placed = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(placed) == {"hs_ed25519_secret_key", "hs_ed25519_public_key"}
    assert {len(content) for content in placed.values()} == {96, 64}
    assert not onion.maybe_place_key(folder, bytes([1]) * 32)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == placed
    assert not onion.maybe_place_key(tmp_path / "not there" / "service", bytes(32))


def test_a_link_does_not_lead_a_key_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "service").symlink_to(tmp_path / "elsewhere")
    assert not onion.maybe_place_key(tmp_path / "service", bytes(32))
    assert list((tmp_path / "elsewhere").iterdir()) == []
