"""`bento-tor client cover`: constant traffic to a box and back, in which data may ride."""

from __future__ import annotations

import codecs
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.client.calls import load_source
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.run import erase
from bento_tor.cli.client.talk import failure_of
from bento_tor.cli.options import json_option
from bento_tor.client.cover import Cover, Pace
from bento_tor.errors import BentoError, ConfigError, FunctionFailed


@click.command()
@click.option("--rate", type=float, default=19920.0, show_default=True, help="Bytes per second, each way.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long, whatever happens.")
@click.option("--jitter", type=float, default=0.0, show_default=True, help="The part of each slot left to chance.")
@click.option(
    "--url", metavar="URL", help="Let the box fetch this under cover, and see it; it goes to standard output."
)
@click.option("-o", "--output", metavar="FILE", help="Write what comes into this file.")
@box_option
@json_option
@pass_reach
def command(
    rate: float,
    seconds: float,
    jitter: float,
    url: str | None,
    output: str | None,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Keep constant traffic to a box and back, so that who watches your link cannot tell what is under way.

    Standard input rides in it and comes back on standard output; or, with --url, a page that the box fetches. It ends
    when the seconds are over, and not before: Ctrl-C can be seen from outside."""
    pace = Pace.of(rate, seconds, jitter)
    source = pace.asking(load_source("cover"), fetching=url is not None)
    out = _Output(output, keep=as_json)
    with ui.progress(f"connecting to {box_address}"):
        box = reach.box(box_address, remember=False).__enter__()
    with box:
        # The policy first: a first visit would else be seen in the middle.
        box.policy()
        session = box.run(source, pace.call())
        ui.say(f"covering for {pace.seconds:g} seconds with {pace.rate:.0f} bytes a second each way")
        try:
            with Cover(session, pace) as cover:
                if url is not None:
                    cover.fetch(url)
                else:
                    threading.Thread(target=_feed, args=(cover,), name="stdin", daemon=True).start()
                for data in cover:
                    out.write(data)
            outcome = session.wait()
        except KeyboardInterrupt:
            session.end()
            raise
        finally:
            out.close()
            erase(box, session)
    if as_json:
        ui.result_json(
            {
                "slot_bytes": pace.slot_bytes,
                "slots": pace.slots,
                "seconds": pace.seconds,
                "sent": cover.sent_bytes,
                "received": cover.received_bytes,
                "unsent": cover.unsent_bytes,
                "complete": cover.complete,
                "error": cover.maybe_error or None,
                **({"data": msgspec.to_builtins(bytes(out.kept))} if output is None else {}),
            }
        )
    if failure := failure_of(outcome):
        raise failure
    if cover.maybe_error:
        raise FunctionFailed(f"the box could not fetch it: {' '.join(cover.maybe_error.split())}")
    if cover.unsent_bytes or (url is not None and not cover.complete):
        raise BentoError(
            f"the cover was over before everything had come: {cover.received_bytes} bytes of it did",
            hint="more --seconds, or a higher --rate",
        )


class _Output:
    """Standard output, a file, or (`keep`) memory."""

    def __init__(self, file: str | None, *, keep: bool) -> None:
        self.kept = bytearray()
        self._keep = keep
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._out = _open(file) if file is not None else None

    def write(self, data: bytes) -> None:
        if self._out is not None:
            try:
                self._out.write(data)
                self._out.flush()
            except OSError as why:
                raise ConfigError(f"cannot write the output: {why.strerror}") from why
        elif self._keep:
            self.kept += data
        elif sys.stdout.isatty():
            ui.write_text(self._decoder.decode(data))
        else:
            ui.write_bytes(data)

    def close(self) -> None:
        if self._out is not None:
            with suppress(OSError):
                self._out.close()


def _open(file: str) -> BinaryIO:
    try:
        return Path(file).open("wb")
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why


def _feed(cover: Cover) -> None:
    """Standard input, read raw: a thread that waits in a buffer blocks the program's end."""
    with suppress(BentoError, OSError):
        while data := os.read(0, 64 * 1024):
            cover.send(data)
        cover.finish()
