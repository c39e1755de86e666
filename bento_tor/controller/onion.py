"""v3 onion services: keys that are ours, publication with confirmation, and a real connection.

We mint and keep the 32-byte ed25519 seed: tor's own 64-byte expanded key cannot be turned back into one, and
other libraries cannot sign with it. Owns no policy on who may publish what.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.uploads import Uploads, watch
from bento_tor.errors import ConfigError, TorError, TorTimeout

if TYPE_CHECKING:  # who only speaks to a SOCKS port has no use for stem
    from bento_tor.controller.tor import Events, Tor

SEED_BYTES = 32
# rend-spec-v3, 6 [ONIONADDRESS]
_VERSION = b"\x03"
_CHECKSUM_PREFIX = b".onion checksum"
_ADDRESS = re.compile(r"[a-z2-7]{56}")
_FETCH_AGAIN_S = 2.0
# tor starts no service before it has built a circuit, and forgets that it has when its directory lacks too much for a
# moment. A client at rest has all circuits that it wants, builds no other, and the service would wait for ever.
_CIRCUIT_AFTER_S = 3.0

Report = Callable[[str], None]


def mint_seed() -> bytes:
    """A fresh seed: whoever knows it is the service."""
    return os.urandom(SEED_BYTES)


def load_or_mint_seed(path: Path) -> bytes:
    """The seed kept at `path`; where there is none, a new one, stored first. Raises ConfigError."""
    try:
        return load_seed(path)
    except FileNotFoundError:
        seed = mint_seed()
        store_seed(path, seed)
        return seed


def store_seed(path: Path, seed: bytes) -> None:
    """Keep a seed: directory 0700, file 0600, on disk before this returns. Never overwrites. Raises
    ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, seed)
            os.fsync(fd)
        except OSError:
            path.unlink()  # half a key must not be taken for one
            raise
        finally:
            os.close(fd)
        _sync_directory(path.parent)
    except OSError as why:
        raise ConfigError(f"the onion key {path} cannot be stored: {why.strerror}") from why


def load_seed(path: Path) -> bytes:
    """A kept seed. Raises FileNotFoundError where there is none, ConfigError where it is not safe or not
    one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as why:
        raise ConfigError(f"the onion key {path} cannot be read: {why.strerror}") from why
    with os.fdopen(fd, "rb") as file:
        found, seed = os.fstat(file.fileno()), file.read(SEED_BYTES + 1)
    # Whoever may read it can take the service's place; whoever may write it can give us his.
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"others may use the onion key {path}", hint=f"chmod 600 {path}, if nobody has read it")
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path} is no onion key of bento-tor's: not {SEED_BYTES} bytes")
    return seed


def onion_address(seed: bytes) -> str:
    """The address (56 characters and `.onion`) of the service with this seed."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    checksum = hashlib.sha3_256(_CHECKSUM_PREFIX + public + _VERSION).digest()[:2]
    return base64.b32encode(public + checksum + _VERSION).decode().lower() + ".onion"


def expanded_key(seed: bytes) -> bytes:
    """The 64 bytes that tor works with: SHA-512 of the seed, its scalar clamped (RFC 8032, 5.1.5)."""
    digest = bytearray(hashlib.sha512(seed).digest())
    digest[0] &= 248
    digest[31] &= 127
    digest[31] |= 64
    return bytes(digest)


def service_key_file(seed: bytes) -> bytes:
    """What a HiddenServiceDir's `hs_ed25519_secret_key` holds for this seed."""
    return b"== ed25519v1-secret: type0 ==".ljust(32, b"\0") + expanded_key(seed)


def public_key_file(seed: bytes) -> bytes:
    """What its `hs_ed25519_public_key` holds."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return b"== ed25519v1-public: type0 ==".ljust(32, b"\0") + public


def maybe_place_key(folder: Path, seed: bytes) -> bool:
    """Make a HiddenServiceDir at `folder` with this key in it, for the owner of the folder above: tor takes a key that
    is there. False: there is one already, or this is not a place that we can write to; tor's own key serves then.

    Raises ConfigError where it fails half-way; nothing of it is left."""
    try:
        above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return _place_key(above, folder.name, seed)
    except OSError as why:
        raise ConfigError(f"the onion key cannot be put into {folder}: {why.strerror}") from why
    finally:
        os.close(above)


def _place_key(above: int, name: str, seed: bytes) -> bool:
    """By descriptors only: tor's user owns the folder above, and must not be able to lead root's writing elsewhere."""
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except (FileExistsError, PermissionError):
        return False
    inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    files = {"hs_ed25519_secret_key": service_key_file(seed), "hs_ed25519_public_key": public_key_file(seed)}
    try:
        owner = os.fstat(above)
        for file, content in files.items():
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inside)
            with os.fdopen(fd, "wb") as out:
                out.write(content)
                os.fchown(fd, owner.st_uid, owner.st_gid)
                out.flush()
                os.fsync(fd)
        os.fchown(inside, owner.st_uid, owner.st_gid)
        os.fsync(inside)
    except OSError:
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file, dir_fd=inside)
        os.rmdir(name, dir_fd=above)
        raise
    finally:
        os.close(inside)
    return True


def is_onion_address(text: str) -> bool:
    """Whether `text` is a v3 address with a right checksum (with or without `.onion`)."""
    name = text.removesuffix(".onion")
    if not _ADDRESS.fullmatch(name):
        return False
    raw = base64.b32decode(name.upper())
    checksum = hashlib.sha3_256(_CHECKSUM_PREFIX + raw[:32] + _VERSION).digest()[:2]
    return raw[32:34] == checksum and raw[34:] == _VERSION


@dataclass(frozen=True)
class Defences:
    """Against floods. `pow_rate`: introductions a second beyond which clients are asked for proof of work; 0: never.
    `max_streams`: most streams of one circuit; 0: no limit."""

    pow_rate: int = 0
    max_streams: int = 0

    @property
    def streams_words(self) -> str:
        """For ADD_ONION, before its ports."""
        return f" MaxStreams={self.max_streams}" if self.max_streams else ""

    @property
    def pow_words(self) -> str:
        """For ADD_ONION, after them. The burst is tor's own ten times the rate (control-spec, ADD_ONION)."""
        rate = self.pow_rate
        return f" PoWDefensesEnabled=1 PoWQueueRate={rate} PoWQueueBurst={10 * rate}" if rate else ""


def publish(
    tor: Tor,
    seed: bytes,
    port: int,
    target: str,
    *,
    timeout_s: float,
    detach: bool = False,
    report: Report | None = None,
    defences: Defences = Defences(),
    clients: Sequence[str] = (),
) -> str:
    """Put a service up on `tor`: its `port` leads to `target` (`unix:/path` or `127.0.0.1:9000`). Returns the
    address.

    Returns when the directories have confirmed its descriptors. It lives as long as this control connection, or
    with `detach` as long as tor. `clients`: x25519 public keys in base32; where there are any, nobody else gets in.
    Not on a single-hop tor: there only HiddenServiceDirs are what they shall be. Raises TorError where tor refuses,
    TorTimeout where no directory confirms in time; the service is withdrawn then."""
    check_hops(tor, single_hop=False)
    key = base64.b64encode(expanded_key(seed)).decode()
    given = {"Detach": detach, "V3Auth": bool(clients)}
    words = ",".join(name for name, is_set in given.items() if is_set)
    flags = f" Flags={words}" if words else ""
    auth = "".join(f" ClientAuthV3={client}" for client in clients)
    address = onion_address(seed)
    deadline = time.monotonic() + timeout_s
    with tor.events("HS_DESC") as events:  # before ADD_ONION: an upload must not be missed
        streams, pow_words = defences.streams_words, defences.pow_words
        tor.ask(f"ADD_ONION ED25519-V3:{key}{flags}{streams} Port={port},{target}{auth}{pow_words}")
        try:
            _until_uploaded(tor, events, address, deadline, timeout_s, report)
        except BaseException:
            if tor.alive:
                withdraw(tor, address)
            raise
    return address


def is_single_hop(tor: Tor) -> bool:
    """Whether that tor hides no service (HiddenServiceNonAnonymousMode), which can be said at its start only. Raises
    TorError."""
    return tor.get_conf("HiddenServiceNonAnonymousMode") == ["1"]


def check_hops(tor: Tor, *, single_hop: bool) -> None:
    """Raises TorError where a service of that kind cannot be put up on that tor: they never mix."""
    if single_hop and not is_single_hop(tor):
        raise TorError(
            "this tor hides its services: none of them can be single-hop",
            hint="such a service needs a tor of its own; 'serve --publish --single-hop' without --control starts one",
        )
    if is_single_hop(tor) and not single_hop:
        raise TorError("this tor hides nobody: it is a single-hop one", hint="say --single-hop, or name another tor")


def withdraw(tor: Tor, address: str) -> None:
    """Take down a service that this connection put up, or a detached one. Raises TorError where tor knows it
    not."""
    tor.ask(f"DEL_ONION {_name(address)}")


def wait_uploaded(tor: Tor, address: str, *, timeout_s: float) -> None:
    """Wait until the directories have the descriptors of `address`, a service of that tor's (HiddenServiceDir
    too).

    Either the uploads are confirmed while we listen, or the descriptor comes when that tor fetches it: so it
    does not matter whether the service was up long before. One that is being uploaded may come from the first
    directory that has it: then the others' words are waited for. Raises TorTimeout with the directories' last
    reason."""
    deadline, uploads, received = time.monotonic() + timeout_s, Uploads(), False

    def is_there(event: HsDescEvent) -> bool:
        nonlocal received
        if event.action == "RECEIVED":
            received = True
            uploads.settle(time.monotonic())
        return received and not uploads.descriptors

    with tor.events("HS_DESC") as events:
        while time.monotonic() < deadline:
            tor.ask(f"HSFETCH {_name(address)}")
            again = min(deadline, time.monotonic() + _FETCH_AGAIN_S)
            if watch(events, _name(address), uploads, again, is_there):
                return
    if not (uploads.confirmed or received):
        raise _unpublished(address, timeout_s, uploads.reason)


@contextmanager
def uploaded_anew(tor: Tor, address: str, *, timeout_s: float) -> Iterator[None]:
    """For a service that is up, and a change inside that makes tor upload its descriptors anew: left when the
    directories have those. Until then they give out the old ones. Raises TorTimeout, also where some have not."""
    deadline = time.monotonic() + timeout_s
    with tor.events("HS_DESC") as events:
        yield
        uploads = _until_uploaded(tor, events, address, deadline, timeout_s, None)
    if uploads.waiting or uploads.refused:
        raise TorTimeout(
            f"some directories have not confirmed the new descriptor of {address}",
            hint="they may give out the old one for an hour or two",
        )


def _until_uploaded(
    tor: Tor, events: Events, address: str, deadline: float, timeout_s: float, report: Report | None
) -> Uploads:
    def tell(event: HsDescEvent) -> bool:
        if report is not None:
            report(f"descriptor: {event.action.lower()}")
        return False

    uploads = Uploads()
    while (now := time.monotonic()) < deadline:
        if watch(events, _name(address), uploads, min(deadline, now + _CIRCUIT_AFTER_S), tell):
            return uploads
        if not uploads.descriptors:
            with suppress(TorError):  # it has no directory yet; a connection that is over is noticed by `watch`
                tor.ask("EXTENDCIRCUIT 0")
    if not uploads.confirmed:
        raise _unpublished(address, timeout_s, uploads.reason)
    return uploads


def _unpublished(address: str, timeout_s: float, reason: str) -> TorTimeout:
    why = f" (the last reason: {reason})" if reason else ""
    return TorTimeout(
        f"no directory confirmed the onion service {address} within {timeout_s:g} s{why}",
        hint="tor must have a consensus and working circuits before it can publish",
    )


def _name(address: str) -> str:
    name = address.removesuffix(".onion").lower()
    if not _ADDRESS.fullmatch(name):
        raise TorError(f"{address!r} is no v3 onion address")
    return name


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
