"""Keys of clients, whom a service lets in, and what a descriptor says, without a tor."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.controller import client_auth, descriptor, onion
from bento_tor.controller.client_auth import Access, base32, mint_pair
from bento_tor.errors import ConfigError, ConnectError

ADDRESS = onion.onion_address(b"\1" * 32)
PAIR = mint_pair()
# RFC 7748's u-coordinates of low order; the first makes tor 0.4.9.11 abort.
LOW_ORDER = (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f")


def test_both_halves_can_be_read_in_each_form() -> None:
    line = client_auth.private_line(ADDRESS, PAIR.private)
    for text in (line, line.partition(":")[2], base32(PAIR.private), base32(PAIR.private).lower() + "\n"):
        assert client_auth.parse_private(text, ADDRESS) == PAIR.private
    for text in (client_auth.public_line(PAIR.public), base32(PAIR.public)):
        assert client_auth.parse_public(text) == PAIR.public
    assert client_auth.public_of(PAIR.private) == PAIR.public


@pytest.mark.parametrize("public", LOW_ORDER, ids=["zero", "one", "minus one"])
def test_a_public_key_that_protects_nothing_or_ends_tor_is_refused(public: bytes) -> None:
    with pytest.raises(ConfigError, match="protects nothing|no x25519"):
        client_auth.parse_public(base32(public))


@pytest.mark.parametrize(
    "text", ["", "x", "A" * 51, "A" * 53, "descriptor:x25519:", "a:b", "1" * 52, "descriptor:rsa:" + "B" * 52]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        client_auth.parse_public(text)
    with pytest.raises(ConfigError):
        client_auth.parse_private(text, ADDRESS)


def test_a_private_key_is_not_taken_for_a_public_one_nor_for_another_service() -> None:
    line = client_auth.private_line(ADDRESS, PAIR.private)
    with pytest.raises(ConfigError, match="private key") as caught:
        client_auth.parse_public(line)
    assert base32(PAIR.private) not in str(caught.value)
    with pytest.raises(ConfigError, match="another service"):
        client_auth.parse_private(line, onion.onion_address(b"\2" * 32))


def test_a_service_stays_locked_when_its_last_client_goes() -> None:
    both = Access().adding("alice", PAIR.public).adding("bob", mint_pair().public)
    assert set(both.keys) == {"alice", "bob"}
    nobody = both.removing("alice").removing("bob")
    assert nobody.locked and not nobody.clients
    # tor lets everybody in where it is given no key: it is given one that nobody has, a new one each time.
    assert len(nobody.keys) == 1 and nobody.keys != nobody.keys
    assert Access().keys == {}


@pytest.mark.parametrize("name", ["", "../x", "-x", "a b", "a/b", "x" * 33, "nobody", "alice\n"])
def test_names_of_clients_are_names_of_files(name: str) -> None:
    with pytest.raises(ConfigError):
        Access().adding(name, PAIR.public)


def test_access_is_kept_and_a_broken_file_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "box.clients"
    assert client_auth.load_access(path) == Access()
    access = Access().adding("alice", PAIR.public)
    client_auth.store_access(path, access)
    assert client_auth.load_access(path) == access and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="already"):
        access.adding("alice", PAIR.public)
    with pytest.raises(ConfigError, match="no client is called"):
        access.removing("eve")
    path.write_text('{"locked": true, "clients": [')
    with pytest.raises(ConfigError):
        client_auth.load_access(path)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("../../x", base32(PAIR.public)),
        ("alice", base32(bytes(32))),
        ("alice", base32(LOW_ORDER[1])),
        ("alice", base32(PAIR.public) + " Port=1,127.0.0.1:1"),
        ("alice", client_auth.public_line(PAIR.public)),
    ],
)
def test_what_nobody_may_add_is_not_read_from_a_file_either(tmp_path: Path, name: str, public: str) -> None:
    path = tmp_path / "box.clients"
    client_auth.store_access(path, Access(locked=True, clients=(client_auth.Client(name, public),)))
    with pytest.raises(ConfigError, match="box.clients"):
        client_auth.load_access(path)


def test_what_lies_in_wait_in_tors_folder_is_not_given_away(tmp_path: Path) -> None:
    """Root writes, the folder is tor's user's: a link of his there must not be written through, or owned by him."""
    of_root, folder = tmp_path / "of_root", tmp_path / "auth"
    of_root.write_text("secret")
    folder.mkdir()
    name = f"{ADDRESS.removesuffix('.onion')}.auth_private"
    (folder / f".{name}.bento-new").hardlink_to(of_root)
    (folder / name).symlink_to(of_root)
    for number in range(2):
        service = tmp_path / f"service{number}" / "authorized_clients"
        service.mkdir(parents=True)
        (service / ".alice").hardlink_to(of_root)
        (service / ".alice.auth.bento-new").hardlink_to(of_root)
        if os.geteuid() == 0:
            os.chown(service.parent, 4242, 4242)
            os.chown(folder, 4242, 4242)
        client_auth.write_authorized(service.parent, {"alice": base32(PAIR.public)})
        assert os.listdir(service) == ["alice.auth"]
    path = client_auth.write_private(folder, ADDRESS, PAIR.private)
    assert os.listdir(folder) == [name] and not path.is_symlink()
    assert path.stat().st_uid == folder.stat().st_uid and path.stat().st_mode & 0o777 == 0o600
    assert of_root.read_text() == "secret" and of_root.stat().st_uid == os.geteuid()


def test_tors_folder_of_clients_holds_exactly_those(tmp_path: Path) -> None:
    assert client_auth.write_authorized(tmp_path, {"alice": base32(PAIR.public), "bob": base32(PAIR.public)})
    assert client_auth.write_authorized(tmp_path, {"bob": base32(PAIR.public)})
    assert not client_auth.write_authorized(tmp_path, {"bob": base32(PAIR.public)})
    folder = tmp_path / "authorized_clients"
    assert [path.name for path in folder.iterdir()] == ["bob.auth"]
    assert (folder / "bob.auth").read_text() == client_auth.public_line(PAIR.public) + "\n"
    client_auth.write_authorized(tmp_path, {})
    assert not list(folder.iterdir())


def test_a_link_leads_no_writing_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    service = tmp_path / "service"
    service.mkdir()
    (service / "authorized_clients").symlink_to(elsewhere)
    with pytest.raises(ConfigError):
        client_auth.write_authorized(service, {"alice": base32(PAIR.public)})
    assert not list(elsewhere.iterdir())


@given(st.text())
def test_a_descriptor_of_anything_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConnectError):
        descriptor.maybe_open(text, ADDRESS)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_descriptor_of_anything_in_the_right_form_is_refused_in_words(cert: bytes, message: bytes) -> None:
    text = (
        f"hs-descriptor 3\nrevision-counter 7\n-----BEGIN ED25519 CERT-----\n{base64.b64encode(cert).decode()}\n"
        "-----END ED25519 CERT-----\n-----BEGIN MESSAGE-----\n"
        f"{base64.b64encode(message).decode()}\n-----END MESSAGE-----\n"
    )
    with pytest.raises(ConnectError):
        descriptor.maybe_open(text, ADDRESS, PAIR.private)
