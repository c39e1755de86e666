"""What an onion service's descriptor says to those who may read it (rend-spec-v3, 2.5). Pure: text in, values out.

tor verifies a descriptor before it shows it, and does not show what is inside: so both layers are opened here. That it
cannot be opened with the address alone is how a service that wants client authorisation looks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from bento_tor.errors import ConnectError

_SALT, _MAC, _KEY, _IV = 16, 32, 32, 16
_CLIENT_ID = 8
# cert-spec, 2.1: version, type, expiry, key type, key, count of extensions; then the first one's length, type, flags.
_SIGNING_KEY_AT = 1 + 1 + 4 + 1 + 32 + 1 + 2 + 1 + 1


@dataclass(frozen=True)
class Contents:
    """What the inner layer says. `pow_effort`: the effort that it suggests, None where it wants no proof of work;
    `pow_until`: when those parameters end, as the descriptor has it (UTC)."""

    intro_points: int
    single_hop: bool
    pow_effort: int | None
    pow_until: str


@dataclass(frozen=True)
class _Outer:
    revision: int
    blinded: bytes
    encrypted: bytes


def maybe_open(text: str, address: str, private: bytes | None = None) -> Contents | None:
    """What the descriptor of `address` says; None where that takes a client's key that `private` is not.

    Raises ConnectError where it is no descriptor of that address."""
    try:
        outer = _parse(text)
        identity = base64.b32decode(address.removesuffix(".onion").upper())[:32]
        credential = hashlib.sha3_256(b"credential" + identity).digest()
        subcredential = hashlib.sha3_256(b"subcredential" + credential + outer.blinded).digest()
        middle = _layer(outer.encrypted, outer.blinded, subcredential, outer.revision, b"hsdir-superencrypted-data")
        if middle is None:
            raise ConnectError(f"the descriptor is not of {address}")
        cookie = _cookie(middle, subcredential, private) if private is not None else b""
        secret = outer.blinded + cookie
        inner = _layer(_message(middle), secret, subcredential, outer.revision, b"hsdir-encrypted-data")
    except (ValueError, IndexError, binascii.Error) as why:
        raise ConnectError(f"the descriptor of {address} cannot be read") from why
    return _contents(inner) if inner is not None else None


def _parse(text: str) -> _Outer:
    found = re.search(r"^revision-counter (\d+)$", text, re.MULTILINE)
    cert = re.search(r"-----BEGIN ED25519 CERT-----\n(.*?)-----END", text, re.DOTALL)
    if found is None or cert is None:
        raise ValueError("a line is missing")
    raw = base64.b64decode(cert[1])
    blinded = raw[_SIGNING_KEY_AT : _SIGNING_KEY_AT + 32]
    return _Outer(int(found[1]), blinded, _message(text))


def _message(text: str) -> bytes:
    found = re.search(r"-----BEGIN MESSAGE-----\n(.*?)-----END MESSAGE-----", text, re.DOTALL)
    if found is None:
        raise ValueError("there is no encrypted part")
    return base64.b64decode(found[1])


def _layer(blob: bytes, secret: bytes, subcredential: bytes, revision: int, constant: bytes) -> str | None:
    """rend-spec-v3, 2.5.3. None: not with this secret."""
    salt, cipher, mac = blob[:_SALT], blob[_SALT:-_MAC], blob[-_MAC:]
    derived = hashlib.shake_256(secret + subcredential + revision.to_bytes(8, "big") + salt + constant)
    keys = derived.digest(_KEY + _IV + _MAC)
    mac_key = keys[_KEY + _IV :]
    stated = hashlib.sha3_256(
        len(mac_key).to_bytes(8, "big") + mac_key + len(salt).to_bytes(8, "big") + salt + cipher
    ).digest()
    if stated != mac:
        return None
    plain = Cipher(AES(keys[:_KEY]), CTR(keys[_KEY : _KEY + _IV])).decryptor().update(cipher)
    return plain.rstrip(b"\0").decode("utf-8", "replace")


def _cookie(middle: str, subcredential: bytes, private: bytes) -> bytes:
    """What a client's key opens of the middle layer; nothing where no line is for it."""
    ephemeral = re.search(r"^desc-auth-ephemeral-key (\S+)$", middle, re.MULTILINE)
    if ephemeral is None:
        raise ValueError("there is no key")
    public = X25519PublicKey.from_public_bytes(_b64(ephemeral[1]))
    seed = X25519PrivateKey.from_private_bytes(private).exchange(public)
    keys = hashlib.shake_256(subcredential + seed).digest(_CLIENT_ID + _KEY)
    for client_id, iv, cookie in re.findall(r"^auth-client (\S+) (\S+) (\S+)$", middle, re.MULTILINE):
        if _b64(client_id) == keys[:_CLIENT_ID]:
            return Cipher(AES(keys[_CLIENT_ID:]), CTR(_b64(iv))).decryptor().update(_b64(cookie))
    return b""


def _contents(inner: str) -> Contents:
    params = re.search(r"^pow-params v1 \S+ (\d+) (\S+)$", inner, re.MULTILINE)
    return Contents(
        intro_points=len(re.findall(r"^introduction-point ", inner, re.MULTILINE)),
        single_hop=re.search(r"^single-onion-service$", inner, re.MULTILINE) is not None,
        pow_effort=int(params[1]) if params else None,
        pow_until=params[2] if params else "",
    )


def _b64(text: str) -> bytes:
    """tor leaves out the padding."""
    return base64.b64decode(text + "=" * (-len(text) % 4))
