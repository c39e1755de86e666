"""Sealing a file so that only a ticket's holder can read it, in pieces of one size. Pure: bytes in, bytes out.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015) over AES-256-GCM, as age and Tink have it:
each chunk's nonce is its number and whether it is the last, so that none can be swapped, left out, cut off or added
unnoticed. The key comes from the ticket's secret and a salt, and the salt from the secret and the file's digest: the
same file sealed again is the same bytes, which lets an upload go on, and two files never meet under one key.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bento_tor.errors import RemoteProtocolError

CHUNK_BYTES = 64 * 1024
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
SECRET_BYTES = 32
SALT_BYTES = 32
_SALT_WORD = b"bento-tor drop box salt 1"
_KEY_WORD = b"bento-tor drop box key 1"
# To a key: HPKE (RFC 9180) carries the secret, behind the salt. functions/browse_to_dropbox.py is the other side.
WRAPPED_BYTES = 32 + SECRET_BYTES + TAG_BYTES
_WRAP_WORD = b"bento-tor drop box to a key 1"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class NotWhatWasPut(RemoteProtocolError):
    """What the box gave is not what was put there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="the box lies, or the ticket is damaged: nothing of it is used")


def salt_for(secret: bytes, digest: bytes) -> bytes:
    """The salt of a file with this SHA-256; without the secret it tells nothing of the file."""
    return hmac.digest(secret, _SALT_WORD + digest, "sha256")


def derive(secret: bytes, word: str) -> bytes:
    """A secret of its own for each word."""
    return HKDF(SHA256(), SECRET_BYTES, salt=None, info=b"bento-tor " + word.encode()).derive(secret)


def public_key(private: bytes) -> bytes:
    """The public half of an X25519 key: what a function seals to."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def unwrap(private: bytes, salt: bytes, wrapped: bytes) -> bytes:
    """The secret that was sealed to that key. Raises NotWhatWasPut."""
    try:
        secret = _SUITE.decrypt(wrapped, X25519PrivateKey.from_private_bytes(private), info=_WRAP_WORD + salt)
    except (InvalidTag, ValueError) as why:
        raise NotWhatWasPut("what is there was not sealed to this ticket's key") from why
    if len(secret) != SECRET_BYTES:
        raise NotWhatWasPut("what was sealed to this ticket's key is no secret")
    return secret


def sealed_bytes(plain_bytes: int) -> int:
    """How long the sealed form is. An empty file has one empty chunk."""
    return plain_bytes + TAG_BYTES * max(1, -(-plain_bytes // CHUNK_BYTES))


def plain_bytes(sealed: int) -> int:
    """The other way round. Raises NotWhatWasPut where no sealed file is so long."""
    whole, rest = divmod(sealed, SEALED_CHUNK_BYTES)
    if sealed < TAG_BYTES or 0 < rest < TAG_BYTES or (rest == TAG_BYTES and whole):
        raise NotWhatWasPut(f"no sealed file has {sealed} bytes")
    return whole * CHUNK_BYTES + max(0, rest - TAG_BYTES)


class Sealer:
    """Seals chunks, in any order."""

    def __init__(self, secret: bytes, salt: bytes) -> None:
        self._key = _key(secret, salt)

    def seal(self, number: int, chunk: bytes | memoryview, *, last: bool) -> bytes:
        """Chunk `number`, of CHUNK_BYTES if it is not the last."""
        return self._key.encrypt(_nonce(number, last=last), chunk, None)


class Chunk(NamedTuple):
    """A chunk that is what was put, and as what it came."""

    plain: bytes
    sealed: bytes | memoryview


class Opener:
    """Opens a stream of sealed bytes as it arrives; holds back what may be the last chunk."""

    def __init__(self, secret: bytes, salt: bytes, *, first: int = 0) -> None:
        """`first`: the number of the chunk that the stream begins with."""
        self._key = _key(secret, salt)
        self._number = first
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """What `data` lets be opened. Raises NotWhatWasPut, and then nothing more may be asked."""
        held = memoryview(self._held + data if self._held else data)
        stop = max(0, len(held) - 1) // SEALED_CHUNK_BYTES * SEALED_CHUNK_BYTES
        self._held = bytes(held[stop:])
        for at in range(0, stop, SEALED_CHUNK_BYTES):
            yield self._open(held[at : at + SEALED_CHUNK_BYTES], last=False)

    def open_all(self, data: bytes, *, last: bool) -> list[bytes]:
        """Whole chunks, known to be such; `last`: the stream's last is among them."""
        view = memoryview(data)
        starts = range(0, len(view) or 1, SEALED_CHUNK_BYTES)
        return [self._open(view[at : at + SEALED_CHUNK_BYTES], last=last and at == starts[-1]).plain for at in starts]

    def finish(self) -> Chunk:
        """The last chunk: the stream is whole. Raises NotWhatWasPut where it is not."""
        return self._open(self._held, last=True)

    def _open(self, sealed: bytes | memoryview, *, last: bool) -> Chunk:
        try:
            plain = self._key.decrypt(_nonce(self._number, last=last), sealed, None)
        except (InvalidTag, ValueError) as why:
            raise NotWhatWasPut(f"piece {self._number} is not what was put there") from why
        self._number += 1
        return Chunk(plain, sealed)


def _key(secret: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=salt, info=_KEY_WORD).derive(secret))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\1" if last else b"\0")
