"""Fetch a page on one box and leave it sealed in a drop box at another. This box sees the page; the other does not.

Arguments: the page's address; the other box's, the invocation token of a drop box there, and the X25519 public key
that the page is sealed to. The user may go away meanwhile: who has the private key collects it later. What is left
begins with a line of JSON (`url`, `status`, `type`, `bytes`, or `error`), then comes the page, then padding: an error,
or a page that is too long, is left like any other, and the size that the other box sees is about a multiple of
`padding`. `bento-tor client browse-to-dropbox` does all of it.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["cryptography", "requests", "PySocks"]
# [tool.bento]
# entry = "browse_to_dropbox"
# image = "python"
# egress = "exit"
# box = true
# ///

import hashlib
import hmac
import json
import os
import time

import requests
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB = 1 << 20
CHUNK_BYTES = 64 * 1024
SEALED_CHUNK_BYTES = CHUNK_BYTES + 16
TRIES = 3


def browse_to_dropbox(url, box, token, key, padding=256 * 1024, timeout=60, most=8 * MIB):
    head, body = fetch(url, time.monotonic() + timeout, most)
    plain = json.dumps(head).encode() + b"\n" + body
    plain += bytes(-len(plain) % padding if padding else 0)
    del body
    sealed = Sealed(plain, key)
    with api.box(box) as there:
        for left in reversed(range(TRIES)):
            try:
                leave(there, token, sealed)
                return "left"
            except ConnectionError:
                if not left:
                    raise


def fetch(url, deadline, most):
    """What is told of the page, and the page."""
    body = bytearray()
    try:
        with requests.Session() as session, session.get(url, stream=True, timeout=30) as answer:
            # Decompressed as it comes: a bomb is stopped by what it becomes.
            for piece in answer.iter_content(CHUNK_BYTES):
                body += piece
                if len(body) > most:
                    raise ValueError(f"the page is longer than {most} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError("the page did not come in time")
        kind = answer.headers.get("Content-Type", "")
        return {"url": answer.url, "status": answer.status_code, "type": kind, "bytes": len(body)}, body
    except (OSError, ValueError) as why:  # requests' own errors are of the first
        return {"url": url, "error": f"{type(why).__name__}: {why}"[:500], "bytes": 0}, b""


class Sealed:
    """Bytes that only the private key's holder can read, as bento_tor/client/sealing.py opens them: a fresh secret,
    sealed to the key by HPKE (RFC 9180); under that the bytes, in chunks, by AES-256-GCM."""

    def __init__(self, plain, key):
        secret = os.urandom(32)
        salt = hmac.digest(secret, b"bento-tor drop box salt 1" + hashlib.sha256(plain).digest(), "sha256")
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        word = b"bento-tor drop box to a key 1" + salt
        self.header = salt + suite.encrypt(secret, X25519PublicKey.from_public_bytes(key), info=word)
        self._plain = memoryview(plain)
        self._key = AESGCM(HKDF(SHA256(), 32, salt=salt, info=b"bento-tor drop box key 1").derive(secret))
        self._chunks = max(1, -(-len(plain) // CHUNK_BYTES))
        self.size = len(plain) + 16 * self._chunks

    def pieces(self, start):
        """The sealed bytes from `start` on."""
        first, skip = divmod(start, SEALED_CHUNK_BYTES)
        for number in range(first, self._chunks):
            last = number == self._chunks - 1
            chunk = self._plain[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            yield self._key.encrypt(number.to_bytes(11, "big") + bytes([last]), chunk, None)[skip:]
            skip = 0


def leave(there, token, sealed):
    """Put it into the drop box; what is there already is not sent again."""
    with there.run(token, "put", sealed.size, sealed.header) as session:
        for piece in sealed.pieces(answer(session)["have"]):
            session.send(piece)
        if answer(session)["have"] != sealed.size:
            raise ConnectionError("the drop box did not take all of it")


def answer(session):
    """The drop box's next word."""
    try:
        told = json.loads(session.recv())
    except EOFError:
        raise ConnectionError(f"the drop box has ended: {session.outcome}") from None
    if told.get("no"):
        raise PermissionError(f"the drop box says no: {told.get('why')}")
    return told
