"""A page of strangers, made into a file of ours that runs nothing and loads nothing when a browser opens it.

The site may be hostile, and so may the box that says what the site sent. Three things stand behind each other: an
allowlist of elements and attributes (nh3, the ammonia of Rust: it builds the tree that a browser would build and
writes it anew, so what it lets through means the same to both); style sheets judged by their tokens and pictures
encoded anew; and a Content-Security-Policy of ours at the top of the page, which holds where the others failed.

Links are kept for the eye: their addresses stand behind a "#", because a click would leave without Tor.
"""

from __future__ import annotations

import html
import re
from urllib.parse import urldefrag, urljoin

import nh3
import webencodings

from bento_tor.client.documents import redraw
from bento_tor.client.page import Page, Part
from bento_tor.client.pictures import Picture, Pictures
from bento_tor.client.styles import clean_declarations, clean_sheet
from bento_tor.errors import BentoError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# All pictures in the file, each as often as it is shown: a page may show one a million times.
_MOST_INLINE_BYTES = 64 << 20
_MOST_SHEETS = 200
# Of style sheets in all: a parser in Python takes seconds for so much.
_MOST_SHEET_CHARS = 1 << 20
_WORDS = """
a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl
dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hgroup hr i img ins kbd label legend li main mark nav ol p
pre q rp rt ruby s samp section small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul
var wbr
"""
_TAGS = frozenset(_WORDS.split())
_EVERYWHERE = {"class", "id", "style", "title", "dir", "lang", "align", "valign", "width", "height", "bgcolor"}
_CELL = {"colspan", "rowspan", "headers", "scope", "nowrap"}
_ATTRIBUTES = {
    "*": _EVERYWHERE,
    "a": {"href"},
    "img": {"src", "srcset", "alt"},
    "font": {"color", "face", "size"},
    "ol": {"start", "type", "reversed"},
    "li": {"value"},
    "details": {"open"},
    "td": _CELL,
    "th": _CELL,
    "col": {"span"},
    "colgroup": {"span"},
    "table": {"border", "cellpadding", "cellspacing", "summary"},
}
_GONE = {"script", "style", "title", "noscript", "template", "iframe", "object", "embed", "svg", "math", "canvas"} | {
    "audio", "video", "select", "textarea", "frameset", "noframes", "noembed", "xmp", "plaintext"
}  # fmt: skip
# What nh3 has written itself: well-formed, and no quote within a value.
_TAG = re.compile(r'<(link|base)((?: [a-z]+="[^"]*")*)>')
_ATTRIBUTE = re.compile(r' ([a-z]+)="([^"]*)"')
_SHEET = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


def wrap(page: Page) -> tuple[str, bytes]:
    """The ending of a file's name, and the file: a page of ours, or a picture. Raises BentoError where what came is
    nothing that can be shown so."""
    document = page.parts[0]
    kind = document.kind.partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml", ""):
        return "html", _Wrapping(page).file()
    if kind.startswith("image/"):
        picture = Pictures().maybe_encode(document.data)
        if picture is None:
            raise BentoError("what came is no picture that can be shown (PNG, JPEG, GIF or WEBP, and not too large)")
        return picture.kind.removeprefix("image/").replace("jpeg", "jpg"), picture.data
    if kind == "application/pdf":
        return "pdf", redraw(document.data)
    if kind.startswith("text/") or kind.endswith(("/json", "+json", "/xml", "+xml")):
        return "html", _frame(page.url, "", f"<pre>{html.escape(_decode(document))}</pre>")
    raise BentoError(f"what came is {kind[:60]}, and only pages, text, pictures and PDF are made harmless and shown")


class _Wrapping:
    """One page at work."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._parts = {part.url: part for part in page.parts[1:]}
        self._encoder = Pictures()
        self._encoded: dict[str, Picture | None] = {}
        self._left_bytes = _MOST_INLINE_BYTES
        self._left_chars = _MOST_SHEET_CHARS
        self._base = page.url

    def file(self) -> bytes:
        """All of it."""
        text = _decode(self._page.parts[0])
        head = nh3.clean(
            text,
            tags={"link", "base", "style", "title"},
            clean_content_tags=_GONE - {"style", "title"},
            attributes={"link": {"href", "rel"}, "base": {"href"}},
            link_rel=None,
        )
        found = [(tag, dict(_ATTRIBUTE.findall(attributes))) for tag, attributes in _TAG.findall(head)]
        bases = [html.unescape(each.get("href", "")) for tag, each in found if tag == "base"]
        self._base = _join(self._page.url, bases[0]) if bases else self._page.url
        linked = [each for tag, each in found if tag == "link" and "stylesheet" in each.get("rel", "").lower()]
        sheets = [self._linked(html.unescape(each.get("href", ""))) for each in linked[:_MOST_SHEETS]]
        sheets += [self._sheet(sheet) for sheet in _SHEET.findall(head)[:_MOST_SHEETS]]
        title = _TITLE.search(head)
        body = nh3.clean(
            text,
            tags=set(_TAGS),
            clean_content_tags=_GONE,
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            url_schemes={"http", "https", "data"},
            link_rel=None,
        )
        # nh3 has escaped the title.
        return _frame(html.unescape(title[1]) if title else self._page.url, "\n".join(sheets), body)

    def _linked(self, address: str) -> str:
        url = urldefrag(_join(self._base, address))[0]
        part = self._parts.get(url)
        return "" if part is None else self._sheet(_decode(part), url)

    def _sheet(self, text: str, maybe_base: str | None = None) -> str:
        if len(text) > self._left_chars:
            return ""
        self._left_chars -= len(text)
        return clean_sheet(text, lambda name: self._picture(name, maybe_base))

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        """The value to keep. An exception in here would drop the attribute too, and write to standard error."""
        if name == "style":
            return clean_declarations(value, self._picture)
        if name == "href":
            return value if value.startswith("#") else f"#{_join(self._base, value)}"
        if name in ("src", "srcset"):
            return self._picture(value.split()[0] if name == "srcset" and value.split() else value)
        return value

    def _picture(self, address: str, maybe_base: str | None = None) -> str | None:
        """Its address in our file."""
        url = urldefrag(_join(maybe_base or self._base, address.strip()))[0]
        part = self._parts.get(url)
        if part is None:
            return None
        if url not in self._encoded:
            self._encoded[url] = self._encoder.maybe_encode(part.data)
        picture = self._encoded[url]
        if picture is None or len(picture.data) > self._left_bytes:
            return None
        self._left_bytes -= len(picture.data)
        return picture.address


def _join(base: str, address: str) -> str:
    try:
        return urljoin(base, address)
    except ValueError:  # an address with half a bracket
        return ""


def _decode(part: Part) -> str:
    """As a browser would: a byte order mark, what the site said, what the page says, else what most of the web is."""
    said = re.search(r"charset\s*=\s*[\"']?([\w-]+)", part.kind, re.IGNORECASE)
    inside = re.search(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w-]+)", part.data[:1024], re.IGNORECASE)
    words = [said[1]] if said else []
    words += [inside[1].decode("ascii", "replace")] if inside else []
    # Only the web's own encodings: Python knows some that are programs.
    known = [encoding for word in words if (encoding := _maybe_encoding(word)) is not None]
    if not known:
        try:
            return part.data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            known = [_maybe_encoding("windows-1252")]
    text: str = webencodings.decode(part.data, known[0])[0]
    return text


def _maybe_encoding(word: str) -> object | None:
    try:
        encoding: object | None = webencodings.lookup(word)
    except LookupError:  # a name of the web's that Python has nothing for
        return None
    return encoding


def _frame(title: str, sheets: str, body: str) -> bytes:
    lines = [
        "<!doctype html>",
        '<html><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="referrer" content="no-referrer">',
        '<meta http-equiv="x-dns-prefetch-control" content="off">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{sheets}</style></head>",
        f"<body>\n{body}\n</body></html>\n",
    ]
    return "\n".join(lines).encode("utf-8", "replace")
