"""Pictures of strangers, decoded here and encoded anew: what is shown is our own file, of one frame and no metadata.

Pillow, by far the most used and most fuzzed decoder that Python has; kept to four formats, since each of its other
forty is a parser more; sizes are judged from the header, before anything is decoded.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
# 25 million pixels take 100 MB while they are decoded; all pictures of a page together, as many as a wall of screens.
_MAX_PIXELS = 25_000_000
_ALL_PIXELS = 200_000_000
_QUALITY = 88


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that we encoded."""

    kind: str
    data: bytes

    @property
    def address(self) -> str:
        """As a data: address, which needs no quoting in HTML or CSS."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"


class Pictures:
    """Decodes the pictures of one page, as many as are reasonable."""

    def __init__(self) -> None:
        self._pixels_left = _ALL_PIXELS

    def maybe_encode(self, data: bytes) -> Picture | None:
        """The same picture in a file of ours; None where it is none, or too large."""
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                pixels = picture.width * picture.height
                if not 0 < pixels <= min(_MAX_PIXELS, self._pixels_left):
                    return None
                self._pixels_left -= pixels
                return _encode(picture)
        except Exception:
            # Whatever a decoder stumbles over, it is no picture of which we know what it is.
            return None


def _encode(picture: Image.Image) -> Picture:
    lossy = picture.format in ("JPEG", "WEBP") and not picture.has_transparency_data
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    # Into a new one: nothing but its pixels comes along, no profile, comment or position.
    clean = Image.new(mode, picture.size)
    clean.paste(picture.convert(mode))
    out = io.BytesIO()
    if lossy:
        clean.save(out, "JPEG", quality=_QUALITY)
    else:
        clean.save(out, "PNG")
    return Picture("image/jpeg" if lossy else "image/png", out.getvalue())
