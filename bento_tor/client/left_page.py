"""A page that functions/browse_to_dropbox.py has left: what is told of it, and the page. Pure.

Whoever ran that function could write here what he liked, so nothing of it is believed, and nothing is opened.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec

from bento_tor.errors import RemoteProtocolError

_MAX_HEAD_BYTES = 64 * 1024
MOST_BYTES = 128 * 1024 * 1024
_Text = Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class _Part(msgspec.Struct, frozen=True):
    url: _Text
    type: _Text
    length: Annotated[int, msgspec.Meta(ge=0)]


class Head(msgspec.Struct, frozen=True):
    """What is told of a page. `error`: why there is none."""

    url: _Text
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] | None = None
    error: _Text | None = None
    parts: Annotated[tuple[_Part, ...], msgspec.Meta(max_length=1)] = ()

    @property
    def kind(self) -> str:
        """The page's Content-Type."""
        return self.parts[0].type if self.parts else ""


def split(data: bytes) -> tuple[Head, bytes]:
    """Head and page, without the padding. Raises RemoteProtocolError where it is neither."""
    packed = zlib.decompressobj()
    try:
        plain = packed.decompress(data, MOST_BYTES)
        end = plain.find(b"\n", 0, _MAX_HEAD_BYTES)
        head = msgspec.json.decode(plain[: max(0, end)], type=Head)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise _no_page() from why
    body = plain[end + 1 :]
    if not packed.eof or len(body) != sum(part.length for part in head.parts) or not (head.parts or head.error):
        raise _no_page()
    return head, body


def _no_page() -> RemoteProtocolError:
    return RemoteProtocolError("what was left is no page", hint="'dropbox get' gives it as it is")
