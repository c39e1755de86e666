"""Tokens at rest: the box keeps hashes and sealed slots, nothing that opens anything.

A hash is bound to its role and to the box, so a token is useless in another role or at another box. Opening a
function's code needs its invocation token: this protects a seized, stopped disk, not from the running operator.
"""

from __future__ import annotations

import base64
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

INVOCATION = "invocation"
SESSION = "session"
SHUTDOWN = "shutdown"

_NONCE_BYTES = 12


def token_hash(role: str, box: str, token: bytes) -> bytes:
    """SHA-256 over role, box address and token: 32 bytes. Tokens are 32 random bytes, so no salt or work factor."""
    return hashlib.sha256(b"bento1\0" + role.encode() + b"\0" + box.encode() + b"\0" + token).digest()


def public_id(invocation_hash: bytes) -> str:
    """The name of a function for everybody, as an abuse report gives it: 16 letters and digits. It opens nothing."""
    digest = hashlib.sha256(b"bento1 public id\0" + invocation_hash).digest()
    return base64.b32encode(digest[:10]).decode().lower()


def slot_key(box: str, invocation: bytes) -> bytes:
    """The key that seals a function's data key, derived from its invocation token."""
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=b"bento1 slot", info=box.encode())
    return hkdf.derive(invocation)


def new_data_key() -> bytes:
    """A fresh key for all that belongs to one function."""
    return ChaCha20Poly1305.generate_key()


def seal(key: bytes, plain: bytes, bound_to: bytes) -> bytes:
    """Encrypt and authenticate; `bound_to` must be given again to open."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, bound_to)


def maybe_unseal(key: bytes, sealed: bytes, bound_to: bytes) -> bytes | None:
    """The plain bytes; None where key, binding or bytes are wrong."""
    nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, body, bound_to)
    except (InvalidTag, ValueError):
        return None
