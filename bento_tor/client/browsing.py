"""A page by way of a box: what is asked of functions/browser.py, in one size, and its one message.

Who watches the user's link must not learn the address from what is sent, nor the page from when we leave: the call is
as long whatever is in it, and everything is read to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from msgspec import structs

from bento_tor import resources
from bento_tor.client import source
from bento_tor.client.apart import MOST_BYTES
from bento_tor.client.session import Session
from bento_tor.client.source import Call, Source
from bento_tor.errors import ConfigError, FunctionFailed, RemoteProtocolError
from bento_tor.policy.outcome import Kind

KINDS = ("html", "pdf", "png")
# The call's arguments take exactly so much: room for an address of three thousand characters.
_ARGUMENTS_BYTES = 4096


@dataclass(frozen=True)
class Wish:
    """What page, and how. `render`: one of KINDS, by an engine at the box; empty: without."""

    url: str
    padding_bytes: int = 0
    release_s: float = 0.0
    render: str = ""
    assets: bool = False
    timeout_s: float = 30.0
    limit_bytes: int = 8 << 20


def address(text: str) -> str:
    """The address that a user means. Raises ConfigError where it is none of the web's."""
    url = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(url)
        good = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(c.isspace() or not c.isprintable() for c in url):
        raise ConfigError(f"{text!r:.200} is no address of a page", hint="for instance https://example.org/")
    return url


def function(wish: Wish) -> Source:
    """The function as it ships; what renders needs another image."""
    # Not by its name: a file of that name in the user's folder would be taken instead.
    shipped = source.parse("browser", resources.read_text("functions", "browser.py"))
    if not wish.render:
        return shipped
    return structs.replace(shipped, manifest=structs.replace(shipped.manifest, image="browser", packages=()))


def call(wish: Wish) -> Call:
    """Its call, of one size. Raises ConfigError where the address is too long for that."""
    by_name = {
        "padding": wish.padding_bytes,
        "render": wish.render,
        "timeout": wish.timeout_s,
        "release": wish.release_s,
        "assets": wish.assets,
        "limit": wish.limit_bytes,
    }
    arguments = ascii(((wish.url,), by_name))
    if len(arguments) > _ARGUMENTS_BYTES:
        raise ConfigError(f"the address is too long: {len(wish.url)} characters")
    # Blanks behind a literal mean nothing.
    return Call("browser", arguments.ljust(_ARGUMENTS_BYTES))


def collect(session: Session) -> bytes:
    """The function's message. Raises FunctionFailed where it sent none, RemoteProtocolError where it sent too much."""
    data = bytearray()
    whole = 0
    while (piece := session.maybe_piece()) is not None:
        data += piece.data
        whole += piece.end
        if len(data) > MOST_BYTES:
            raise RemoteProtocolError(f"the box sent more than {MOST_BYTES} bytes, and that is no page")
    outcome = session.wait()
    if outcome.kind is not Kind.RETURNED or whole != 1:
        sentence = outcome.detail.strip().splitlines()[-1:] or [outcome.word]
        raise FunctionFailed(
            f"the box's browser ended without a page: {sentence[0][:300]}", hint=_HINTS.get(outcome.kind, "")
        )
    return bytes(data)


_HINTS = {
    Kind.KILLED_MEMORY: "the page is too much for this box's limit of memory; try without --assets",
    Kind.KILLED_TIME: "this box runs functions for a shorter time than --page-timeout",
    Kind.KILLED_POLICY: "--padding is more than this box lets a function send",
}
