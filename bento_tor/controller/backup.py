"""One sealed file with all that makes an operator's relay and box who they are.

    tor     DataDirectory: the relay's identity keys, the keys and clients of its HiddenServiceDirs
    state   the box's folder: onion keys, record key, clients, what setup-relay wrote down, blocked destinations
    policy  the box's settings, and its policy where that is in a file of its own

Not in it: stored functions, sessions, logs, and what tor makes anew (its onion-routing keys among them). The way back
is in `restoring`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from bento_tor.controller import onion
from bento_tor.errors import ConfigError

MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_ONE_BYTES = 1024 * 1024
_MAGIC = b"bento-tor backup 1\n"
# RFC 7914's parameters for files: 128 MiB and about half a second for each guess of a passphrase.
_COST, _BLOCK, _LANES = 2**17, 8, 1
_SALT_BYTES, _NONCE_BYTES = 16, 12

# Globs below each root. Not tor's medium-term keys: it makes them anew, and old ones are worth stealing.
_TOR = (
    "keys/ed25519_master_id_*",
    "keys/ed25519_signing_*",
    "keys/secret_id_key",
    "keys/*.secret_family_key",
    "fingerprint",
    "fingerprint-ed25519",
)
_SERVICE = ("hs_ed25519_secret_key", "hs_ed25519_public_key", "hostname", "authorized_clients/*.auth")
_STATE = (
    "keys/*.seed",
    "keys/*.key",
    "onions/*.seed",
    "onions/*.json",
    "onions/*.clients",
    "relay.json",
    "blocked",
)


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `root` is one of tor, state, policy; `path` is below it."""

    root: str
    path: str
    mode: int
    content: bytes


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in the file. `fingerprint`: the relay's, empty where tor is none; `onions`: addresses by the folder or
    seed file that they come from."""

    files: tuple[Kept, ...]
    fingerprint: str
    onions: dict[str, str]


def collect(*, state: Path | None, tor_data: Path | None, policy: tuple[Path, ...] = ()) -> Backup:
    """All that is there to keep. Raises ConfigError where a file cannot be read, or there is nothing."""
    files: list[Kept] = []
    if tor_data is not None:
        services = [path.parent.name for path in sorted(tor_data.glob("*/hs_ed25519_secret_key"))]
        globs = (*_TOR, *(f"{name}/{glob}" for name in services for glob in _SERVICE))
        files += _read_all("tor", tor_data, globs)
    if state is not None:
        files += _read_all("state", state, _STATE)
    files += [_read("policy", path.parent, path) for path in policy]
    if not files:
        raise ConfigError("there is nothing to back up", hint="name the box's --state, and tor's --tor-data")
    return Backup(tuple(files), _stated_fingerprint(files), _addresses(files))


def seal(backup: Backup, passphrase: str) -> bytes:
    """The file."""
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    box = AESGCM(_key(passphrase, salt)).encrypt(nonce, msgspec.msgpack.encode(backup), _MAGIC)
    return _MAGIC + salt + nonce + box


def unseal(data: bytes, passphrase: str) -> Backup:
    """What a file holds. Raises ConfigError where the passphrase is wrong or the file is damaged."""
    if not data.startswith(_MAGIC):
        raise ConfigError("this is no backup of bento-tor's", hint="'bento-tor keys backup' makes one")
    body = data[len(_MAGIC) :]
    salt, nonce, box = body[:_SALT_BYTES], body[_SALT_BYTES:][:_NONCE_BYTES], body[_SALT_BYTES + _NONCE_BYTES :]
    try:
        plain = AESGCM(_key(passphrase, salt)).decrypt(nonce, box, _MAGIC)
        return msgspec.msgpack.decode(plain, type=Backup)
    except (InvalidTag, ValueError, msgspec.MsgspecError) as why:
        raise ConfigError("the passphrase is wrong, or the file is damaged") from why


def is_onion_seed(kept: Kept) -> bool:
    """Whether it is the seed of an onion service of ours (the box's own, or one of `onion create`)."""
    path = PurePosixPath(kept.path)
    return kept.root == "state" and path.suffix == ".seed" and (path.parts[0] == "onions" or path.stem == "onion")


def _read_all(root: str, folder: Path, globs: tuple[str, ...]) -> Iterator[Kept]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    for glob in globs:
        for path in sorted(folder.glob(glob)):
            yield _read(root, folder, path)


def _read(root: str, folder: Path, path: Path) -> Kept:
    """A link is not followed: tor's user could point one at any file of root's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found, content = os.fstat(fd), file.read(_MAX_ONE_BYTES + 1)
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}", hint="run this as root, or as tor's user") from why
    if len(content) > _MAX_ONE_BYTES or not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is no file of keys or settings")
    return Kept(root, str(path.relative_to(folder)), stat.S_IMODE(found.st_mode) & 0o755, content)


def _stated_fingerprint(files: list[Kept]) -> str:
    """The second word of tor's own file `fingerprint`."""
    for kept in files:
        if (kept.root, kept.path) == ("tor", "fingerprint"):
            words = kept.content.decode("ascii", "replace").split()
            return words[1] if len(words) > 1 else ""
    return ""


def _addresses(files: list[Kept]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kept in files:
        if kept.path.endswith("/hostname"):
            found[f"{kept.root}/{kept.path}"] = kept.content.decode("ascii", "replace").strip()
        elif is_onion_seed(kept) and len(kept.content) == onion.SEED_BYTES:
            found[f"{kept.root}/{kept.path}"] = onion.onion_address(kept.content)
    return found


def _key(passphrase: str, salt: bytes) -> bytes:
    # A passphrase read from a file or a terminal may hold bytes that are no text.
    return Scrypt(salt, 32, _COST, _BLOCK, _LANES).derive(passphrase.encode(errors="surrogateescape"))
