"""PDF files of strangers: drawn here, page by page, and kept as pictures in a PDF file of ours.

PDFium, which Chromium draws with: a PDF is a program for whatever opens it, so none is handed on. The text in it can
be read, and no longer be selected.
"""

from __future__ import annotations

import io

import pypdfium2

from bento_tor.errors import BentoError

_DPI = 130
_POINTS = 72
_MAX_PAGES = 60
# A0 at that resolution is 26 million pixels; all pages together are in memory at once.
_MAX_PIXELS = 30_000_000
_ALL_PIXELS = 150_000_000
_QUALITY = 85


def redraw(data: bytes) -> bytes:
    """The file, drawn anew. Raises BentoError where it is none, or too large."""
    try:
        with pypdfium2.PdfDocument(data) as document:
            if not 0 < len(document) <= _MAX_PAGES:
                raise BentoError(f"the PDF has {len(document)} pages; up to {_MAX_PAGES} are drawn")
            return _draw(document)
    except BentoError:
        raise
    except Exception as why:
        raise BentoError("what came is no PDF that can be drawn") from why


def _draw(document: pypdfium2.PdfDocument) -> bytes:
    pages, left = [], _ALL_PIXELS
    scale = _DPI / _POINTS
    for page in document:
        width, height = page.get_size()
        pixels = width * scale * height * scale
        if not 0 < pixels <= min(left, _MAX_PIXELS):
            raise BentoError("the PDF is too large to be drawn")
        left -= int(pixels)
        # Not its forms and annotations: only what is on the page itself.
        pages.append(page.render(scale=scale, may_draw_forms=False, draw_annots=False).to_pil().convert("RGB"))
    out = io.BytesIO()
    pages[0].save(out, "PDF", save_all=True, append_images=pages[1:], resolution=_DPI, quality=_QUALITY)
    return out.getvalue()
