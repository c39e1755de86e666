"""`api.store`, as a function sees it: blobs that outlive its sessions. Text that travels; standard library only.

The box sends it before the code, to functions whose manifest says `store = true`, where its policy offers storage; the
driver runs it, and makes `Store(api)` the function's `api.store`. What it says to the box is described in driver.py.
"""

from __future__ import annotations

import errno
import json
from typing import Any

STORE, STORE_DATA, STORE_REFUSED = 0x88, 0x89, 0x09
GET, PUT, DELETE, LIST, EXPIRE = 1, 2, 3, 4, 5
MAX_PART_BYTES = 64 * 1024


class Conflict(Exception):
    """Another session has changed the blob meanwhile."""


class Blob(bytes):
    """What was kept, with the version that `put(..., expect=)` wants."""

    version = 0


class Store:
    """Blobs by name. All sessions of the function share them; nobody else has them."""

    Conflict = Conflict

    def __init__(self, api: Any) -> None:
        self._api = api

    def put(self, name: str, data: str | bytes | bytearray | memoryview, expect: int | None = None) -> int:
        """Keep `data` under `name`; gives its version. With `expect`, only if that is the version that is kept now
        (0: none is). Raises Conflict where it is not, OSError (EDQUOT) where it is too much."""
        view = memoryview(data.encode() if isinstance(data, str) else data)
        view = view.cast("B") if view.contiguous else memoryview(view.tobytes())
        with self._api._receiving:
            self._ask(PUT, name, expect, len(view))
            for start in range(0, len(view), MAX_PART_BYTES):
                self._api._wire.write(STORE_DATA, view[start : start + MAX_PART_BYTES])
            return int(self._reply()["version"])

    def get(self, name: str) -> Blob:
        """What is kept under `name`. Raises KeyError where nothing is, Conflict where it changes as it is read."""
        with self._api._receiving:
            found = self._ask(GET, name)
            parts, left = [], found["bytes"]
            while left:
                parts.append(self._body())
                left -= len(parts[-1])
        blob = Blob(b"".join(parts))
        blob.version = found["version"]
        return blob

    def delete(self, name: str, expect: int | None = None) -> None:
        """Forget it. Raises KeyError where nothing is kept, Conflict where `expect` is not its version."""
        self._ask(DELETE, name, expect)

    def list(self) -> dict[str, dict[str, int]]:
        """Every name, with its `bytes` and `version`."""
        blobs: dict[str, dict[str, int]] = self._ask(LIST)["blobs"]
        return blobs

    def expire(self, seconds: int) -> None:
        """Have the box erase the function, with all that it keeps, in so many seconds, also if nobody comes, and end
        what runs of it; 0: now, so it is the last thing to say. Where something sooner was said, that stays."""
        self._ask(EXPIRE, length=seconds)

    def _ask(self, verb: int, name: str = "", expect: int | None = None, length: int = 0) -> dict[str, Any]:
        numbers = (-1 if expect is None else expect).to_bytes(8, "big", signed=True) + length.to_bytes(8, "big")
        with self._api._receiving:
            self._api._wire.write(STORE, bytes([verb]) + numbers + name.encode())
            return self._reply()

    def _reply(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self._body())
        return reply

    def _body(self) -> bytes:
        kind, body = self._api._wait_answer()
        if kind != STORE_REFUSED:
            return bytes(body)
        word, _, sentence = body.decode().partition(" ")
        if word == "missing":
            raise KeyError(sentence)
        if word == "conflict":
            raise Conflict(sentence)
        if word == "full":
            raise OSError(errno.EDQUOT, sentence)
        raise ValueError(sentence)
