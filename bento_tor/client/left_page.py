"""A page that functions/browse_to_dropbox.py has left: what is told of it, and the page. Pure.

Whoever ran that function could write here what he liked, so nothing of it is believed, and nothing is opened.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from bento_tor.errors import RemoteProtocolError

_MAX_HEAD_BYTES = 16 * 1024
_Text = Annotated[str, msgspec.Meta(max_length=8192)]


class Head(msgspec.Struct, frozen=True):
    """What is told of a page. `error`: why there is none."""

    url: _Text
    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0
    type: _Text = ""
    error: _Text = ""


def split(data: bytes) -> tuple[Head, bytes]:
    """Head and page, without the padding. Raises RemoteProtocolError where it is neither."""
    end = data.find(b"\n", 0, _MAX_HEAD_BYTES)
    try:
        head = msgspec.json.decode(data[: max(0, end)], type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise RemoteProtocolError("what was left is no page", hint="'dropbox get' gives it as it is") from why
    body = data[end + 1 : end + 1 + head.bytes]
    if len(body) != head.bytes or data[end + 1 + head.bytes :].strip(b"\0"):
        raise RemoteProtocolError("what was left is no page", hint="'dropbox get' gives it as it is")
    return head, body
