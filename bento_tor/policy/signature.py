"""Who signed a policy: a record key, which the onion service's identity key certifies. Pure; ed25519 (RFC 8032).

The address of a v3 onion service is its public key, so a client who knows the address needs nothing else to see
that the box's operator, and nobody between them, wrote this policy; and two users who compare digests see whether they
were shown the same. Two keys: the identity key is used once, to certify; the record key signs each policy.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bento_tor.errors import ConfigError, RemoteProtocolError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
CERTIFICATE_BYTES = KEY_BYTES + SIGNATURE_BYTES
# What tor signs with an identity key begins with other words ("Tor onion service descriptor ..."): none of our
# signatures can be taken for one of tor's, nor the other way round.
_CERTIFIED = b"bento1 record key\0"
_SIGNED = b"bento1 policy\0"


@dataclass(frozen=True, slots=True)
class Signed:
    """A policy's bytes with what vouches for them. Without a certificate nobody does."""

    document: bytes
    certificate: bytes = b""
    signature: bytes = b""


def sign(document: bytes, identity_seed: bytes, record_seed: bytes) -> Signed:
    """The document, signed by the record key, which the identity key certifies; both are 32-byte seeds."""
    identity = Ed25519PrivateKey.from_private_bytes(identity_seed)
    record = Ed25519PrivateKey.from_private_bytes(record_seed)
    public = record.public_key().public_bytes_raw()
    certificate = public + identity.sign(_CERTIFIED + public)
    onion = identity.public_key().public_bytes_raw()
    # Bound to the box: operators of two boxes may share a record key, never a policy by mistake.
    return Signed(document, certificate, record.sign(_SIGNED + onion + document))


def verify(signed: Signed, address: str) -> bool:
    """Whether the service at `address` signed the document. False: it is unsigned, which is not forbidden.

    Raises RemoteProtocolError where there is a signature, and it is not good: somebody has had his hands in it."""
    if not signed.certificate and not signed.signature:
        return False
    public, certified = signed.certificate[:KEY_BYTES], signed.certificate[KEY_BYTES:]
    onion = _public_key(address)
    try:
        Ed25519PublicKey.from_public_bytes(onion).verify(certified, _CERTIFIED + public)
        Ed25519PublicKey.from_public_bytes(public).verify(signed.signature, _SIGNED + onion + signed.document)
    except (InvalidSignature, ValueError) as why:
        raise RemoteProtocolError(
            f"the policy of {address} is not signed by that address: it is not used",
            hint="the box is broken, or not what it says; ask its operator",
        ) from why
    return True


def _public_key(address: str) -> bytes:
    """The key that a v3 address spells (rend-spec-v3, section 6)."""
    try:
        return base64.b32decode(address.removesuffix(".onion").upper())[:KEY_BYTES]
    except ValueError as why:
        raise ConfigError(f"{address!r} is no onion address") from why
