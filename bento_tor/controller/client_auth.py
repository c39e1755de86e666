"""Client authorisation of onion services (rend-spec-v3, 2.5.1.2): x25519 keys, whom a service lets in, and a client's
keys in its tor.

Without one of the keys a client can read neither where the service's introduction points are nor that it is there
under another key. Owns the forms of keys and where they lie; it puts up no service.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from bento_tor.controller import rewrite
from bento_tor.controller.onion import is_onion_address
from bento_tor.errors import ConfigError, TorError

if TYPE_CHECKING:  # who only speaks to a SOCKS port has no use for stem
    from bento_tor.controller.tor import Tor

KEY_BYTES = 32
# Each is a line in every descriptor; tor drops a descriptor of more than 50 kB (rend-spec-v3, 2.5.1.1).
MAX_CLIENTS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NOBODY = "nobody"
_MAX_AUTHORIZED_BYTES = 1024


@dataclass(frozen=True)
class KeyPair:
    """One client's key, 32 bytes each. The private half is for the client's tor only."""

    private: bytes
    public: bytes


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One whom a service lets in: the operator's name for him, and his public key in base32."""

    name: str
    public: str


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom a service lets in. `locked`: only who has a key; it stays so when the last one is revoked."""

    locked: bool = False
    clients: tuple[Client, ...] = ()

    def adding(self, name: str, public: bytes) -> Access:
        """With one more. Raises ConfigError where the name is taken or is none."""
        if not _NAME.fullmatch(name) or name == _NOBODY:
            raise ConfigError(f"{name!r} is no name of a client", hint="up to 32 letters, digits, - and _")
        if any(client.name == name for client in self.clients):
            raise ConfigError(f"{name} has a key already", hint=f"revoke it first: 'onion auth revoke ... {name}'")
        if len(self.clients) == MAX_CLIENTS:
            raise ConfigError(f"a service lets in {MAX_CLIENTS} clients at most")
        return Access(locked=True, clients=(*self.clients, Client(name, base32(public))))

    def removing(self, name: str) -> Access:
        """Without one. Raises ConfigError where there is none of that name."""
        left = tuple(client for client in self.clients if client.name != name)
        if len(left) == len(self.clients):
            known = ", ".join(client.name for client in self.clients)
            raise ConfigError(f"no client is called {name!r}", hint=f"there are {known}" if known else "there is none")
        return Access(locked=True, clients=left)

    @property
    def keys(self) -> dict[str, str]:
        """Name and public key of each, for tor. Where nobody is left: a key that nobody has, because a service of tor's
        that has no client's key lets everybody in."""
        if self.locked and not self.clients:
            return {_NOBODY: base32(mint_pair().public)}
        return {client.name: client.public for client in self.clients} if self.locked else {}


def mint_pair() -> KeyPair:
    """A fresh key."""
    private = X25519PrivateKey.generate()
    return KeyPair(private.private_bytes_raw(), private.public_key().public_bytes_raw())


def base32(key: bytes) -> str:
    """As tor's files have it: 52 letters and digits."""
    return base64.b32encode(key).decode().rstrip("=")


def public_line(public: bytes) -> str:
    """What a client gives to an operator, and what tor has in `authorized_clients/*.auth`."""
    return f"descriptor:x25519:{base32(public)}"


def private_line(address: str, private: bytes) -> str:
    """What an operator gives to a client, and what its tor has in `ClientOnionAuthDir/*.auth_private`."""
    return f"{address.removesuffix('.onion')}:descriptor:x25519:{base32(private)}"


def parse_public(text: str) -> bytes:
    """A public key, with or without `descriptor:x25519:` before it. Raises ConfigError."""
    words = text.strip().split(":")
    if len(words) == 4:
        raise ConfigError(
            "this is a client's private key, and the service needs its public one",
            hint="the line without an address: descriptor:x25519:...",
        )
    if words[:-1] not in ([], ["descriptor", "x25519"]):
        raise ConfigError("this is no client's public key", hint="it looks like descriptor:x25519:<52 letters>")
    return _checked(_key(words[-1]))


def parse_private(text: str, address: str) -> bytes:
    """A private key for the service at `address`, with or without `<address>:descriptor:x25519:` before it.

    Raises ConfigError; its words never hold the key."""
    words = text.strip().split(":")
    if len(words) == 4 and words[0] != address.removesuffix(".onion"):
        raise ConfigError(f"this key is for another service than {address}")
    if words[-3:-1] not in ([], ["descriptor", "x25519"]) or len(words) == 2:
        raise ConfigError("this is no client authorisation key", hint="the operator's line is <address>:descriptor:...")
    return _key(words[-1])


def public_of(private: bytes) -> bytes:
    """The public half."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def load_access(path: Path) -> Access:
    """Whom a service lets in; everybody where nothing is written. Raises ConfigError where it cannot be read: a service
    must not be open because a file is broken."""
    try:
        access = msgspec.json.decode(path.read_bytes(), type=Access)
        for client in access.clients:
            # It may come from a backup, or an editor: a name is one of a file, and a key can end tor.
            if not _NAME.fullmatch(client.name) or base32(_parse_kept(client.public)) != client.public:
                raise ConfigError(f"{client.name!r} is no client of bento-tor's making")
    except FileNotFoundError:
        return Access()
    except ConfigError as why:
        raise ConfigError(f"{path} cannot be used: {why.message}", hint=why.hint) from why
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path} cannot be used: {getattr(why, 'strerror', None) or why}") from why
    return access


def store_access(path: Path, access: Access) -> None:
    """Write it down, wholly or not at all. Raises ConfigError."""
    rewrite.write(path, msgspec.json.encode(access), like=None)


def write_authorized(service_dir: Path, keys: dict[str, str]) -> bool:
    """Make a HiddenServiceDir's `authorized_clients` hold exactly these. tor reads them when it is told of that folder.
    Returns whether it held others.

    By descriptors only: tor's user owns the folder, and must not be able to lead root's writing elsewhere. Raises
    ConfigError."""
    try:
        above = os.open(service_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _write_authorized(above, keys)
        finally:
            os.close(above)
    except OSError as why:
        raise ConfigError(f"{service_dir}/authorized_clients cannot be written: {why.strerror}") from why


def _write_authorized(above: int, keys: dict[str, str]) -> bool:
    owner, folder = os.fstat(above), "authorized_clients"
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700, dir_fd=above)
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    try:
        os.fchown(inside, owner.st_uid, owner.st_gid)
        lines = {f"{name}.auth": f"descriptor:x25519:{public}\n" for name, public in keys.items()}
        before = {name: _read_in(inside, name) for name in os.listdir(inside)}  # noqa: PTH208 - it has no path
        # The new ones first: at no moment is there none, which would mean everybody.
        for name, line in lines.items():
            _write_in(inside, name, line, owner)
        for name in os.listdir(inside):  # noqa: PTH208 - a descriptor has no path
            if name not in lines:
                os.unlink(name, dir_fd=inside)
        os.fsync(inside)
        return before != lines
    finally:
        os.close(inside)


def _read_in(inside: int, name: str) -> str | None:
    """What such a file holds; None where it is something else, which tor's user may have put there."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
        with os.fdopen(fd, "rb") as file:
            return (file.read(_MAX_AUTHORIZED_BYTES) or b"").decode("ascii")  # None: a pipe that waits
    except (OSError, UnicodeDecodeError):
        return None


def _write_in(inside: int, name: str, text: str, owner: os.stat_result) -> None:
    """One file in an open folder of `owner`'s, wholly or not at all. What lies in wait there under the temporary name,
    a link to a file of root's for instance, is neither written to nor given away. Raises OSError."""
    temporary = f".{name}.bento-new"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=inside)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inside)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        os.fchown(fd, owner.st_uid, owner.st_gid)
        file.flush()
        os.fsync(fd)
    os.rename(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)


@dataclass(frozen=True)
class KnownKey:
    """A key that a client's tor has. `permanent`: also after that tor restarts."""

    address: str
    name: str
    permanent: bool


def add_key(tor: Tor, address: str, private: bytes) -> bool:
    """Give a client's tor the key for a service. Whether it keeps it when it restarts: where it has a folder for that
    (ClientOnionAuthDir). Raises TorError."""
    permanent = bool([value for value in tor.get_conf("ClientOnionAuthDir") if value])
    flags = " Flags=Permanent" if permanent else ""
    key = base64.b64encode(private).decode()
    tor.ask(f"ONION_CLIENT_AUTH_ADD {_bare(address)} x25519:{key}{flags}")
    return permanent


def remove_key(tor: Tor, address: str) -> bool:
    """Take it away again. False: that tor had none. Raises TorError."""
    reply = tor.msg(f"ONION_CLIENT_AUTH_REMOVE {_bare(address)}")
    if not reply.ok:
        raise TorError(f"tor refused ONION_CLIENT_AUTH_REMOVE: {reply.lines[-1]} ({reply.code})")
    return reply.code == "250"


def known_keys(tor: Tor) -> tuple[KnownKey, ...]:
    """The services that a client's tor has keys for; the keys themselves stay there. Raises TorError."""
    found: list[KnownKey] = []
    for line in tor.ask("ONION_CLIENT_AUTH_VIEW").lines:
        words = line.split()
        if words[:1] == ["CLIENT"] and len(words) > 2:
            options = dict(word.partition("=")[::2] for word in words[3:])
            permanent = "Permanent" in options.get("Flags", "").split(",")
            found.append(KnownKey(f"{words[1]}.onion", options.get("ClientName", ""), permanent))
    return tuple(found)


def write_private(folder: Path, address: str, private: bytes) -> Path:
    """The key as a file of a client's ClientOnionAuthDir: for a tor without a control port. Raises ConfigError."""
    path = folder / f"{_bare(address)}.auth_private"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="the one that ClientOnionAuthDir names in tor's torrc")
    try:
        # By descriptors only: of a path tor's user, whose folder it is, could make a link to what root then gives him.
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _write_in(inside, path.name, private_line(address, private) + "\n", os.fstat(inside))
            os.fsync(inside)
        finally:
            os.close(inside)
    except OSError as why:
        raise ConfigError(f"{path} cannot be written for tor's user: {why.strerror}") from why
    return path


def _bare(address: str) -> str:
    if not is_onion_address(address):
        raise ConfigError(f"{address!r} is no v3 onion address")
    return address.removesuffix(".onion")


@functools.lru_cache(maxsize=4 * MAX_CLIENTS)
def _parse_kept(text: str) -> bytes:
    """`parse_public`, of the file that a box reads again and again."""
    return parse_public(text)


def _checked(public: bytes) -> bytes:
    """Points of low order share the secret zero with everybody; and the key of zeros makes tor 0.4.9.11 abort, also at
    each start, when it reads it from authorized_clients: a client could put a relay out by it."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as why:
        raise ConfigError("this public key protects nothing", hint="the client shall make a new one") from why
    return public


def _key(text: str) -> bytes:
    try:
        key = base64.b32decode(text.upper() + "====")
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or not any(key):
        raise ConfigError("this is no x25519 key", hint="52 letters and digits: one is missing or mistyped")
    return key
