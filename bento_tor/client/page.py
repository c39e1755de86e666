"""A page as a box sent it: its form, taken apart. Nothing here is trusted, and nothing here is shown.

The form is functions/browser.py's: compressed by zlib, a line of JSON, then the parts' bytes. Parts are named by their
addresses, which are never the names of files. Pure.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated

import msgspec

from bento_tor.errors import RemoteProtocolError

MAX_PARTS = 256
_MAX_HEAD_BYTES = 1 << 20
# What a box says about a page is shown in a line.
_MAX_SENTENCE_CHARS = 300

Text = Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class Certificate(msgspec.Struct, frozen=True):
    """What vouched for the site, as the box saw it."""

    valid: bool
    subject: Text = ""
    issuer: Text = ""


class _Listed(msgspec.Struct, frozen=True):
    url: Text
    type: Text
    length: Annotated[int, msgspec.Meta(ge=0)]


class _Head(msgspec.Struct, frozen=True):
    url: Text
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] | None
    certificate: Certificate | None
    error: Text | None
    left_out: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    parts: Annotated[tuple[_Listed, ...], msgspec.Meta(max_length=MAX_PARTS)]


@dataclass(frozen=True, slots=True)
class Part:
    """Something that was fetched. `kind`: the site's Content-Type."""

    url: str
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """What the box says that it found at an address: the first part is the page, the others what it needs."""

    url: str
    status: int | None
    certificate: Certificate | None
    error: str
    left_out: int
    parts: tuple[Part, ...]


def unpack(message: bytes, most_bytes: int) -> Page:
    """Take it apart; unpacked it may have `most_bytes`. Raises RemoteProtocolError where it is something else."""
    packed = zlib.decompressobj()
    try:
        data = packed.decompress(message, most_bytes + 1)
    except zlib.error as why:
        raise _not_a_page("it is not compressed") from why
    # A box's bomb is as good as a site's.
    if len(data) > most_bytes:
        raise _not_a_page(f"it unpacks to more than {most_bytes} bytes")
    if not packed.eof:
        raise _not_a_page("it is cut short")
    end = data.find(b"\n", 0, _MAX_HEAD_BYTES)
    try:
        head = msgspec.json.decode(data[: max(0, end)], type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise _not_a_page("its first line cannot be read") from why
    if end + 1 + sum(listed.length for listed in head.parts) != len(data):
        raise _not_a_page("its parts have another length than it says")
    parts, at = [], end + 1
    for listed in head.parts:
        parts.append(Part(listed.url, listed.type, data[at : at + listed.length]))
        at += listed.length
    error = "" if head.error is None else " ".join(head.error.split())[:_MAX_SENTENCE_CHARS] or "it is not said why"
    if not parts and not error:
        raise _not_a_page("there is no page in it, and no reason")
    return Page(head.url, head.status, head.certificate, error, head.left_out, tuple(parts))


def _not_a_page(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the box sent no page: {why}", hint="try another box")
