"""Fetch a page on one box and leave it sealed in a drop box at another. This box sees the page; the other does not.

Arguments: the page's address; the other box's, the invocation token of a drop box there, and the X25519 public key
that the page is sealed to. The user may go away meanwhile: who has the private key collects it later. What is left has
the form of browser.py's message (zlib; a line of JSON; the page), then padding: an error, or a page that is too long
or too slow, is left like any other, and the size that the other box sees is, but for the sealing, a multiple of
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
import threading
import zlib

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
# As Tor Browser says it: a site should learn no more of a box than of anybody.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate",
}
DECODERS = {"gzip": 47, "x-gzip": 47, "deflate": 47, "identity": 0, "": 0}


def browse_to_dropbox(url, box, token, key, padding=256 * 1024, timeout=60, most=8 * MIB):
    page = Page(url, most)
    # In a thread that may be left behind: a server that sends a byte each second keeps no time limit of a socket's.
    worker = threading.Thread(target=page.fetch, args=(timeout,), daemon=True)
    worker.start()
    worker.join(timeout)
    plain = page.pack(f"it did not arrive in {timeout} seconds")
    sealed = Sealed(plain + bytes(-len(plain) % padding if padding else 0), key)
    with api.box(box) as there:
        for left in reversed(range(TRIES)):
            try:
                leave(there, token, sealed)
                return "left"
            except ConnectionError:
                if not left:
                    raise


class Page:
    """A page on its way."""

    def __init__(self, url, most):
        self.url = url
        self.most = most
        self.head = {"url": url, "status": None, "certificate": None, "error": None, "left_out": 0, "parts": []}
        self.body = b""
        self.done = False

    def fetch(self, timeout):
        head = dict(self.head)
        try:
            with requests.Session() as session:
                session.headers.update(HEADERS)
                with session.get(self.url, stream=True, timeout=timeout) as answer:
                    body = self.read(answer)
            head |= {"url": answer.url, "status": answer.status_code}
            head["certificate"] = {"valid": True} if answer.url.startswith("https:") else None
            head["parts"] = [{"url": answer.url, "type": answer.headers.get("Content-Type", ""), "length": len(body)}]
            self.body = body
        except Exception as why:
            head["error"] = f"{type(why).__name__}: {why}"[:300]
        self.head, self.done = head, True

    def read(self, answer):
        """All of it, decoded no further than it may be long: a small gzip may hold gigabytes."""
        window = DECODERS[answer.headers.get("Content-Encoding", "").strip().lower()]
        decoder = zlib.decompressobj(window) if window else None
        body = bytearray()
        for piece in answer.raw.stream(16 * 1024, decode_content=False):
            body += decoder.decompress(piece, self.most - len(body) + 1) if decoder else piece
            if len(body) > self.most:
                raise ValueError(f"it is larger than {self.most} bytes")
        return bytes(body)

    def pack(self, late):
        head, body = (self.head, self.body) if self.done else ({**self.head, "error": late}, b"")
        packer = zlib.compressobj(9)
        return packer.compress(json.dumps(head).encode() + b"\n") + packer.compress(body) + packer.flush()


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
