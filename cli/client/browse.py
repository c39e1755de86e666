"""`bento-tor client browse`: a web page by way of a box, made harmless before it is seen."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import webbrowser
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.run import erase
from bento_tor.cli.options import json_option
from bento_tor.client import browsing
from bento_tor.client.apart import MOST_BYTES, rewrap
from bento_tor.client.box import Box
from bento_tor.client.browsing import Wish
from bento_tor.client.page import Page, unpack
from bento_tor.client.session import Session
from bento_tor.client.source import Call, Source
from bento_tor.errors import BentoError, ConfigError


@click.command()
@click.argument("url")
@click.option(
    "--padding", type=click.IntRange(0, 1 << 32), default=1_000_000, show_default=True, metavar="BYTES",
    help="What the box sends is a multiple of so many bytes; 0: as much as there is.",
)  # fmt: skip
@click.option(
    "--release", type=click.FloatRange(0, 600), default=10.0, show_default=True, metavar="SECONDS",
    help="It is sent at a multiple of so many seconds; 0: when it is there.",
)  # fmt: skip
@click.option("--assets", is_flag=True, help="The page's pictures and style sheets too.")
@click.option("--render", type=click.Choice(browsing.KINDS), help="Let an engine at the box show it, scripts and all.")
@click.option(
    "--page-timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, metavar="SECONDS",
    help="How long the box may take for the page.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1, MOST_BYTES), default=8 << 20, show_default=True, metavar="BYTES",
    help="The most that a page may have, with its assets.",
)  # fmt: skip
@click.option("-o", "--output", metavar="FILE", help="Write it there; - is standard output.  [default: HOST.html]")
@click.option("--open", "open_it", is_flag=True, help="Show it in your web browser.")
@box_option
@json_option
@pass_reach
def command(
    url: str,
    padding: int,
    release: float,
    assets: bool,
    render: str | None,
    page_timeout: float,
    limit: int,
    output: str | None,
    open_it: bool,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Fetch the page at URL by a box that lets functions out, and save it. The box sees the page and its address.

    What is saved or opened is made here of what came: nothing in it runs, and nothing is loaded when it is seen. Your
    link shows one request of one size, and one answer. Ctrl-C waits for that, so that nobody sees you leave; Ctrl-C
    twice leaves."""
    if output is not None and open_it:
        raise click.UsageError("-o saves the page and --open shows it: one of the two.")
    wish = Wish(browsing.address(url), padding, release, render or "", assets, page_timeout, limit)
    call = browsing.call(wish)
    started = time.monotonic()
    with ui.progress(f"fetching {wish.url} by way of {box_address}"), reach.box(box_address) as box:
        message = _Visit(box, browsing.function(wish), call).wait()
    page = unpack(message, MOST_BYTES)
    if not page.parts:
        raise BentoError(f"the page did not come: {page.error}")
    ending, data = rewrap(message)
    place = _save(data, ending, wish.url, output=output, open_it=open_it)
    _tell(page, place, as_json=as_json, seconds=round(time.monotonic() - started, 3))


class _Visit:
    """One page's way from the box, in a thread that the first Ctrl-C does not reach."""

    def __init__(self, box: Box, function: Source, call: Call) -> None:
        self._box = box
        self._function = function
        self._call = call
        self._maybe_session: Session | None = None
        self._message = b""
        self._maybe_error: BaseException | None = None
        # Not Thread.join: one that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        self._over = threading.Event()

    def wait(self) -> bytes:
        """The function's message. Raises what went wrong; KeyboardInterrupt when all is over, or at the second."""
        threading.Thread(target=self._run, name="browsing", daemon=True).start()
        try:
            self._over.wait()
        except KeyboardInterrupt:
            ui.say("waiting for the answer, so that nobody sees you leave; Ctrl-C again leaves")
            try:
                self._over.wait()
            except KeyboardInterrupt:
                if self._maybe_session is not None:
                    erase(self._box, self._maybe_session)
                raise
            raise
        if self._maybe_error is not None:
            raise self._maybe_error
        return self._message

    def _run(self) -> None:
        try:
            self._maybe_session = self._box.run(self._function, self._call)
            try:
                self._message = browsing.collect(self._maybe_session)
            finally:
                erase(self._box, self._maybe_session)
        except BaseException as error:
            self._maybe_error = error
        finally:
            self._over.set()


def _save(data: bytes, ending: str, url: str, *, output: str | None, open_it: bool) -> str:
    """Where it is now; empty: on standard output."""
    if output == "-":
        ui.write_bytes(data)
        return ""
    if open_it:
        place = Path(tempfile.mkdtemp(prefix="bento-page-")) / f"page.{ending}"
        place.write_bytes(data)
        if not webbrowser.open(place.as_uri()):
            raise ConfigError(f"no web browser could be started; the page is {place}", hint="open it, or use -o")
        return str(place)
    try:
        with _create(url, ending) if output is None else Path(output).open("wb") as file:
            file.write(data)
            return file.name
    except OSError as why:
        raise ConfigError(f"cannot write the page: {why.strerror}") from why


def _create(url: str, ending: str) -> BinaryIO:
    """A new file, named after what the user asked for; nothing is ever written over."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", urlsplit(url).hostname or "").strip(".-")[:100] or "page"
    for number in range(1, 10_000):
        path = Path(f"{stem}.{ending}" if number == 1 else f"{stem}-{number}.{ending}")
        try:
            return path.open("xb")
        except FileExistsError:
            continue
    raise ConfigError(f"there are too many files named {stem}", hint="name one with -o")


def _tell(page: Page, place: str, *, as_json: bool, seconds: float) -> None:
    vouched = page.certificate
    if page.error:
        ui.warn(f"the page may not be whole: {page.error}")
    if as_json:
        told = {"url": page.url, "status": page.status, "file": place, "left_out": page.left_out, "seconds": seconds}
        named = None if vouched is None else {"subject": vouched.subject, "issuer": vouched.issuer}
        ui.result_json(told | {"certificate": named, "error": page.error or None})
        return
    by = "without TLS" if vouched is None else f"certificate of {vouched.subject}, by {vouched.issuer}"
    left = f", {page.left_out} assets left out" if page.left_out else ""
    ui.say(f"the box says: {page.status} {page.url} ({by}{left})")
    if place:
        ui.result(ui.escape(place))
