"""The Chromium of the image `browser`: Debian's own, which files of it a function sees, and with which fonts.

It is the old headless shell: no desktop, no updater, a third of the processes of the whole browser. How it is driven is
the function's business (functions/render.py). Does not start sandboxes.
"""

from __future__ import annotations

import subprocess

from bento_tor.errors import SandboxError

PROFILE = "browser"
PROGRAM = "/usr/lib/chromium/chromium-headless-shell"
FONTS_FILE = "fonts.conf"
_PACKAGE = "chromium-headless-shell"
# Debian's packages, and what of theirs is shown. The first has the letters that most pages ask for by name; the others,
# 12 MB together, those of Chinese, Japanese and Korean, and of Arabic, Hebrew, Hindi, Thai and many more. No emoji:
# another 11 MB. Without FreeMono, which would be taken for Arabic and Hebrew: nobody writes those in one width.
_TRUETYPE = "/usr/share/fonts/truetype"
_FONTS = {
    "fonts-liberation": f"{_TRUETYPE}/liberation",
    "fonts-wqy-microhei": f"{_TRUETYPE}/wqy/wqy-microhei.ttc",
    "fonts-freefont-ttf": f"{_TRUETYPE}/freefont",
}
# Of the machine's. Not its other fonts, nor its settings for them: a page can tell boxes apart by those.
SHOWN = ("/usr/lib/chromium", *_FONTS.values())
FONTS_CONF = f"""\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{_TRUETYPE}</dir>
  <cachedir>/data/fonts</cachedir>
  <selectfont><rejectfont><glob>{_FONTS["fonts-freefont-ttf"]}/FreeMono*</glob></rejectfont></selectfont>
  <alias><family>sans-serif</family><prefer><family>Liberation Sans</family></prefer></alias>
  <alias><family>serif</family><prefer><family>Liberation Serif</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>Liberation Mono</family></prefer></alias>
  <alias binding="same"><family>Arial</family><accept><family>Liberation Sans</family></accept></alias>
  <alias binding="same"><family>Helvetica</family><accept><family>Liberation Sans</family></accept></alias>
  <alias binding="same"><family>Times New Roman</family><accept><family>Liberation Serif</family></accept></alias>
  <alias binding="same"><family>Courier New</family><accept><family>Liberation Mono</family></accept></alias>
</fontconfig>
"""


def version() -> str:
    """The version of Debian's package. Raises SandboxError where it or the fonts are not installed."""
    found = {name: _installed(name) for name in (_PACKAGE, *_FONTS)}
    if missing := [name for name, told in found.items() if not told]:
        raise SandboxError(
            f"the image browser needs Debian's {' and '.join(missing)}",
            hint=f"as root: apt-get install --no-install-recommends {' '.join(missing)}",
        )
    return found[_PACKAGE]


def _installed(package: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        answer = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as why:
        raise SandboxError(f"dpkg cannot be asked for {package}: {why}", hint="the image browser is Debian's") from why
    status, _, told = answer.stdout.partition(" ")
    return told if status == "installed" else ""
