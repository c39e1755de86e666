"""What a hostile site, or a hostile box, puts into a page, and what is left of it in the file that a user opens.

A row each. What must never be there is looked for in every file: anything that runs, or that names something outside.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from PIL import Image

from bento_tor.client import apart
from bento_tor.client.apart import rewrap
from bento_tor.client.page import Page, Part, unpack
from bento_tor.client.wrapping import POLICY, wrap
from bento_tor.errors import BentoError, RemoteProtocolError

URL = "http://site.example/a/page"
EVIL = "http://evil.example/x"


@pytest.fixture(scope="module")
def png(load: Callable[[Path], Any]) -> Callable[..., bytes]:
    return load(Path(__file__).parent.parent / "functions" / "site.py").png


def page(text: str | bytes, *parts: Part, kind: str = "text/html; charset=utf-8") -> Page:
    data = text.encode() if isinstance(text, str) else text
    return Page(URL, 200, None, "", 0, (Part(URL, kind, data), *parts))


def wrapped(text: str | bytes, *parts: Part, kind: str = "text/html; charset=utf-8") -> str:
    return wrap(page(text, *parts, kind=kind))[1].decode()


class Seen(HTMLParser):
    """Every element and attribute that a browser would see, and all style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.css = ""
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.css += dict(attrs).get("style") or ""
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.css += data


HARMLESS = {"html", "head", "meta", "title", "style", "body"}
FORBIDDEN = {"script", "iframe", "object", "embed", "svg", "math", "form", "input", "button", "link", "base", "video"}


def check_inert(text: str) -> Seen:
    """Nothing runs, nothing is loaded, and our policy stands before everything else."""
    seen = Seen(text)
    policies = [has for tag, has in seen.tags if tag == "meta" and has.get("http-equiv") == "Content-Security-Policy"]
    assert [has["content"] for has in policies] == [POLICY]
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert sum(tag in HARMLESS for tag, _ in seen.tags) == 4 + 5, "one frame, ours: " + text[:500]
    for tag, has in seen.tags:
        assert tag not in FORBIDDEN, tag
        for name, value in has.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset"):
                assert value and re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value), (tag, value)
            elif name == "href":
                assert value and value.startswith("#"), (tag, value)
            else:
                assert name in ("content", "charset", "http-equiv", "name", "title", "alt") or EVIL not in (value or "")
    css = re.sub(r'url\("data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+"\)', "", seen.css)
    for word in ("url(", "@import", "@font-face", "image-set", "expression", "-moz-binding", "behavior", "http:", "//"):
        assert word not in css.lower(), css
    return seen


ATTACKS = {
    "script": "<script>alert(1)</script>",
    "script-src": f"<script src={EVIL}></script>",
    "script-unclosed": "<script>alert(1)",
    "script-case": "<ScRiPt\n>alert(1)</sCrIpT >",
    "script-in-script": "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "event": "<p onclick=alert(1) onmouseover='alert(1)'>x</p>",
    "event-slash": "<img/src=x/onerror=alert(1)>",
    "event-quote": "<p title='\" onclick=alert(1) x=\"'>x</p>",
    "body-event": "<body onload=alert(1)><p>x",
    "javascript": "<a href='javascript:alert(1)'>x</a>",
    "javascript-tabs": "<a href='java\tscript:alert(1)'>x</a>",
    "javascript-entities": "<a href='&#106;avascript&colon;alert(1)'>x</a>",
    "vbscript": "<a href=' \x01vbscript:alert(1)'>x</a>",
    "data-html": "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "link-out": f"<a href={EVIL} ping={EVIL} target=_blank>x</a>",
    "half-an-address": "<a href='http://[x'>x</a><img src='http://[x'>",
    "meta-refresh": f"<meta http-equiv=refresh content='0;url={EVIL}'>",
    "meta-policy": '<meta http-equiv=Content-Security-Policy content="script-src *">',
    "base": f"<base href={EVIL}><img src=y.png>",
    "iframe": f"<iframe src={EVIL}></iframe><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "frameset": f"<frameset><frame src={EVIL}></frameset>",
    "object": f"<object data={EVIL}></object><embed src={EVIL}><applet code={EVIL}></applet>",
    "svg": "<svg onload=alert(1)><script>alert(1)</script><image href=http://evil.example/x /></svg>",
    "svg-style": "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "math": "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "mutation": "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "noscript": "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "title-end": "<title></title><script>alert(1)</script></title>",
    "title-escape": "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;</title>",
    "comment": "<!--><script>alert(1)</script>--><!--[if IE]><script>alert(1)</script><![endif]-->",
    "template": "<template><script>alert(1)</script></template>",
    "textarea": "<textarea></textarea><script>alert(1)</script></textarea>",
    "plaintext": "<plaintext><script>alert(1)</script>",
    "form": f"<form action={EVIL}><input name=x autofocus onfocus=alert(1)><button formaction={EVIL}>go</form>",
    "image": f"<img src={EVIL}><img src=//evil.example/x><img src='data:image/svg+xml,<svg onload=alert(1)>'>",
    "srcset": f"<img srcset='{EVIL} 1x, {EVIL} 2x'><picture><source srcset={EVIL}><img src={EVIL}></picture>",
    "lazy": f"<img data-src={EVIL} longdesc={EVIL} lowsrc={EVIL} usemap={EVIL}>",
    "table-background": f"<table background={EVIL}><td background={EVIL}>x</table>",
    "media": f"<video poster={EVIL}><source src={EVIL}></video><audio src={EVIL}></audio>",
    "link": f"<link rel=stylesheet href={EVIL}><link rel=prefetch href={EVIL}><link rel=icon href={EVIL}>",
    "manifest": f"<html manifest={EVIL}><p>x",
    "css-url": f"<style>p {{ background: url({EVIL}) }}</style>",
    "css-url-escaped": f"<style>p {{ background: \\75 rl({EVIL}); list-style: u\\72l('{EVIL}') }}</style>",
    "css-url-comment": f"<style>p {{ background: url(/**/{EVIL}) }}</style>",
    "css-bad-url": f"<style>p {{ background: url({EVIL} x) }}</style>",
    "css-import": f"<style>@import '{EVIL}'; @import url({EVIL}); @IMPORT\t\"{EVIL}\" screen;</style>",
    "css-font": f"<style>@font-face {{ font-family: x; src: url({EVIL}) }}</style>",
    "css-image-set": f"<style>p {{ background: image-set('{EVIL}' 1x); x: -webkit-image-set('{EVIL}' 1x) }}</style>",
    "css-variable": f"<style>p {{ --x: url({EVIL}); background: var(--x) }}</style>",
    "css-nested": f"<style>@media screen {{ @supports (x:y) {{ p {{ & b {{ background: url({EVIL}) }} }} }} }}</style>",
    "css-in-media": f"<style>@media screen {{ @import '{EVIL}'; p {{ cursor: url({EVIL}), auto }} }}</style>",
    "css-namespace": f"<style>@namespace x url({EVIL}); @document url({EVIL}) {{ p {{ x: y }} }}</style>",
    "css-old": f"<style>p {{ behavior: url({EVIL}); -moz-binding: url({EVIL}); width: expression(alert(1)) }}</style>",
    "css-end": "<style>p::after { content: '\\3c/style><script>alert(1)</script>' }</style>",
    "css-end-raw": "<style>p { x: y }</sty<!-- -->le></style><script>alert(1)</script>",
    "css-selector": f"<style>a[href='</style>'] {{ x: y }} p[title='{EVIL}'] {{ background: url({EVIL}) }}</style>",
    "css-attribute": f"<p style='background: url({EVIL}); width: 3px'>x</p>",
    "css-attribute-quote": "<p style='x: \"&quot; onclick=alert(1)'>x</p>",
    "css-bidi": "<p style='unicode-bidi: bidi-override'>x</p>",
    "nul": "<scr\0ipt>alert(1)</scr\0ipt><p>\0x",
    "cdata": "<![CDATA[<script>alert(1)</script>]]><p>x",
    "xml": "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><p>&e;</p>",
    "our-own-frame": "</body></html><script>alert(1)</script><style></style><meta charset=utf-7><body>",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_runs_and_nothing_is_loaded(name: str) -> None:
    for before, after in (("", ""), ("<p>before", "after</p>"), ("<div><table><tr><td>", "")):
        check_inert(wrapped(before + ATTACKS[name] + after))


CHARSETS = {
    "utf-7": "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "zlib_codec": "x",
    "unicode_escape": "\\x3cscript\\x3ealert(1)",
    "idna": "x",
    "rot13": "<fpevcg>nyreg(1)</fpevcg>",
    "replacement": "<script>alert(1)</script>",
    "utf-16": "<script>alert(1)</script>",
    "iso-2022-jp": "\x1b$B<script>alert(1)</script>",
    "nothing-known": "<script>alert(1)</script>",
}


@pytest.mark.parametrize("charset", CHARSETS)
def test_a_charset_is_one_of_the_webs_and_hides_nothing(charset: str) -> None:
    check_inert(wrapped(CHARSETS[charset], kind=f"text/html; charset={charset}"))
    check_inert(wrapped(f"<meta charset={charset}>{CHARSETS[charset]}", kind="text/html"))


def test_a_page_in_its_own_characters_is_read_as_a_browser_reads_it() -> None:
    word = "\u041f\u0440\u0438\u0432\u0435\u0442"
    for encoding in ("windows-1251", "koi8-r", "utf-16", "utf-8-sig", "utf-8"):
        head = b"" if encoding.startswith("utf") else f"<meta charset={encoding}>".encode()
        assert word in wrapped(head + word.encode(encoding), kind="text/html"), encoding
        assert word in wrapped(word.encode(encoding), kind=f"text/html; charset={encoding.removesuffix('-sig')}")
    assert "caf\u00e9" in wrapped("caf\u00e9".encode("latin-1"), kind="text/html")


def test_what_a_page_needs_is_in_the_file(png: Callable[..., bytes]) -> None:
    text = """<title>A &amp; B</title><link rel=stylesheet href=../s.css>
    <h1 class=big style="color: red; width: 3px">Hi</h1>
    <img src=1.png alt=one><img srcset="/2.png 2x, /3.png 3x"><a href=/there>there</a><a href=#here>here</a>"""
    sheet = b"h1.big { background: url(2.png) no-repeat } @media print { p { color: green } }"
    parts = [Part("http://site.example/a/1.png", "image/png", png()), Part("http://site.example/2.png", "", png(9, 9))]
    out = wrapped(text, *parts, Part("http://site.example/s.css", "text/css", sheet))
    seen = check_inert(out)
    assert "<title>A &amp; B</title>" in out and 'alt="one"' in out
    pictures = [has for tag, has in seen.tags if tag == "img"]
    assert "src" in pictures[0] and "srcset" in pictures[1]
    assert "@media print {p {color: green }\n}" in out and "color: red;width: 3px" in out
    assert re.search(r'h1\.big \{background: url\("data:image/png;base64,[^"]+"\) no-repeat ?\}', out)
    assert 'href="#http://site.example/there"' in out and 'href="#here"' in out


def picture(kind: str, size: tuple[int, int] = (20, 10), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(out, kind, **options)
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A bomb: a header that promises more than anybody has memory for, and few bytes."""
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    chunks = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(body)) + name + body + struct.pack("!I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_is_encoded_anew_and_brings_nothing_along(kind: str) -> None:
    secret = b"where it was taken"
    more = {"comment": secret} if kind in ("JPEG", "GIF") else {"exif": b"Exif\0\0MM\0*\0\0\0\x08" + secret}
    data = picture(kind, **more) + b"<script>behind the end</script>"
    assert secret in data
    ending, made = wrap(page(data, kind=f"image/{kind.lower()}"))
    assert ending in ("png", "jpg") and secret not in made and b"script" not in made
    with Image.open(io.BytesIO(made)) as again:
        assert again.size == (20, 10) and again.format in ("PNG", "JPEG")


NO_PICTURES = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "bmp": picture("BMP"),
    "tiff": picture("TIFF"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "html": b"<script>alert(1)</script>",
    "nothing": b"",
    "cut": picture("PNG", (500, 500))[:60],
    "a-billion-pixels": huge_png(40_000, 40_000),
    "long-and-thin": huge_png(2**31 - 1, 1),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_of_four_formats_is_none(name: str) -> None:
    with pytest.raises(BentoError, match="no picture"):
        wrap(page(NO_PICTURES[name], kind="image/png"))
    out = wrapped("<img src=/x>", Part("http://site.example/x", "image/png", NO_PICTURES[name]))
    assert "data:" not in out.partition("<body>")[2]


def test_one_picture_a_million_times_is_not_a_million_pictures() -> None:
    noise = Image.effect_noise((700, 700), 100).convert("RGB")
    out = io.BytesIO()
    noise.save(out, "PNG")
    made = wrapped("<img src=/x>" * 3000, Part("http://site.example/x", "image/png", out.getvalue()))
    assert 1 < made.count("data:image") < 3000 and len(made) < 100 << 20


@pytest.mark.parametrize("kind", ["application/zip", "multipart/related", "video/mp4", "\x1b["])
def test_what_cannot_be_made_harmless_is_not_saved(kind: str) -> None:
    with pytest.raises(BentoError, match="only pages, text, pictures and PDF"):
        wrap(page(b"%PDF-1.7", kind=kind))


def test_text_is_shown_as_text() -> None:
    out = wrapped("<script>alert(1)</script> & so on", kind="text/plain")
    assert "&lt;script&gt;" in out
    check_inert(out)


# --- the message of a hostile box ------------------------------------------------------------------------------------


def message(*parts: tuple[str, str, bytes], packed: Callable[[bytes], bytes] = zlib.compress, **more: Any) -> bytes:
    listed = [{"url": url, "type": kind, "length": len(data)} for url, kind, data in parts]
    head = {"url": URL, "status": 200, "certificate": None, "error": None, "left_out": 0, "parts": listed} | more
    return packed(json.dumps(head).encode() + b"\n" + b"".join(data for _, _, data in parts))


ONE = (URL, "text/html", b"<p>x")
MESSAGES = {
    "empty": b"",
    "not-compressed": b"<html>",
    "a-zip": b"PK\x03\x04" + bytes(100),
    "cut": message(ONE)[:-9],
    "bomb": zlib.compress(bytes(80 << 20)),
    "no-line": zlib.compress(b"x" * 100),
    "no-json": zlib.compress(b"x\n"),
    "deep-json": zlib.compress(b"[" * 100_000 + b"\n"),
    "too-many-parts": message(*[ONE] * 300),
    "longer-than-said": message(ONE, packed=lambda data: zlib.compress(data + b"more")),
    "shorter-than-said": message(ONE, packed=lambda data: zlib.compress(data[:-1])),
    "negative": message(ONE, parts=[{"url": URL, "type": "", "length": -4}]),
    "huge-length": message(ONE, parts=[{"url": URL, "type": "", "length": 1 << 80}]),
    "text-for-number": message(ONE, status="200"),
    "nothing-at-all": message(),
    "huge-url": message(ONE, url="http://" + "x" * 100_000),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_that_is_no_page_is_said_in_a_sentence(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match="the box sent no page"):
        unpack(MESSAGES[name], 64 << 20)


def test_names_of_parts_are_never_files() -> None:
    """No archive with names: an address that looks like a path is an address that nothing asks for."""
    names = ["../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd", "\0", "a" * 5000]
    told = unpack(message(ONE, *[(name, "text/css", b"p{}") for name in names]), 1 << 20)
    assert [part.url for part in told.parts[1:]] == names
    check_inert(wrap(told)[1].decode())


def test_a_sentence_of_the_box_is_one_short_line() -> None:
    told = unpack(message(error="no\npage\x1b[2J" + "x" * 9000), 1 << 20)
    assert "\n" not in told.error and len(told.error) == 300


# --- in a process of its own -----------------------------------------------------------------------------------------


def test_it_is_done_in_a_process_that_can_open_nothing(png: Callable[..., bytes], monkeypatch: Any) -> None:
    text = b"<meta charset=koi8-r><img src=/x.png><img src=/y.webp><p>" + "\u041f".encode("koi8-r")
    parts = [("http://site.example/x.png", "", png()), ("http://site.example/y.webp", "", picture("WEBP"))]
    ending, data = rewrap(message((URL, "text/html", text), *parts))
    assert ending == "html" and data.count(b"data:image") == 2 and "\u041f".encode() in data
    # What the decoders could do there if one of them were taken over.
    tries = "open('/etc/passwd')", "__import__('socket').socket()", "__import__('os').fork()"
    for tried in tries:
        start = apart._START.replace("work()", f"import socket, os; work.__globals__['_TRIED'] = 1\n{_TRY % tried}")
        monkeypatch.setattr(apart, "_START", start)
        assert rewrap(message(ONE)) == ("PermissionError", b""), tried
        monkeypatch.undo()


_TRY = """
import sys
from bento_tor.client import apart, wrapping
def wrap(page):
    try: %s
    except OSError as error: return type(error).__name__, b''
    return 'worked', b''
wrapping.wrap = wrap
apart.work()
"""


def test_a_page_that_would_take_for_ever_ends_in_a_sentence(monkeypatch: Any) -> None:
    monkeypatch.setattr(apart, "_START", apart._START.replace("work()", "apart_work()").replace(
        "import work", "import work as apart_work; import bento_tor.client.apart as a; a._CPU_S = 2"
    ))  # fmt: skip
    with pytest.raises(BentoError, match="too tangled"):
        rewrap(message((URL, "text/html", b"<div>" * 400_000)))


def test_what_that_process_says_of_a_page_comes_through() -> None:
    with pytest.raises(BentoError, match="only pages, text, pictures and PDF"):
        rewrap(message((URL, "application/zip", b"PK")))


PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>
/Annots[<</Type/Annot/Subtype/Link/Rect[0 0 300 200]/A<</S/URI/URI(http://evil.example/)>>>>]>>endobj
4 0 obj<</Length 41>>stream
BT /F 24 Tf 20 100 Td (Hello there) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>"""


def test_a_pdf_is_drawn_and_what_it_would_do_is_gone() -> None:
    ending, made = rewrap(message((URL, "application/pdf", PDF)))
    assert ending == "pdf" and not any(word in made for word in (b"JavaScript", b"evil", b"/Font", b"/Annot"))
    with pypdfium2.PdfDocument(made) as document:
        assert len(document) == 1 and [round(side) for side in document[0].get_size()] == [300, 200]
        drawn = document[0].render(scale=1).to_pil().convert("L")
    assert drawn.getextrema()[0] < 80 and drawn.getpixel((290, 10)) > 240, "the text, on white"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no PDF"),
        (b"%PDF-1.7", "no PDF"),
        (PDF.replace(b"300 200]/C", b"99999999 99999999]/C"), "too large"),
        (PDF.replace(b"Kids[3 0 R]/Count 1", b"Kids[" + b"3 0 R " * 100 + b"]/Count 100"), "pages"),
    ],
)
def test_a_pdf_that_cannot_be_drawn_is_a_sentence(data: bytes, why: str) -> None:
    with pytest.raises(BentoError, match=why):
        wrap(page(data, kind="application/pdf"))
