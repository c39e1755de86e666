"""`bento-tor client run`: store, run and erase in one go; nothing is written to disk here."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.talk import Talk, finish
from bento_tor.cli.options import json_option
from bento_tor.errors import BentoError


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("file")
@click.argument("arguments", nargs=-1)
@click.option("--call", "call_text", metavar="'NAME(LITERALS)'", help="Run this call instead of the entry.")
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, into this file.")
@box_option
@json_option
@pass_reach
def command(
    file: str,
    arguments: tuple[str, ...],
    call_text: str | None,
    raw: bool,
    output: str | None,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Run FILE (or a function that ships) at a box, with ARGUMENTS: Python literals, else strings.

    Lines of standard input are its input; its output goes to standard output. Then it is erased at the box."""
    from bento_tor.client import source

    function = source.load(file)
    if call_text and arguments:
        raise click.UsageError("give arguments either in --call or after FILE")
    call = source.parse_call(call_text) if call_text else source.entry_call(function, list(arguments))
    talk = Talk(raw=raw, file=output, as_json=as_json)
    started = time.monotonic()
    # A SIGTERM, like a Ctrl-C, must not leave the function at the box.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ui.progress(f"connecting to {box_address}"):
        box = reach.box(box_address, remember=False).__enter__()
    with box:
        with ui.progress(f"starting {call.name}"):
            session = box.run(function, call)
        try:
            outcome = talk.carry(session)
        except KeyboardInterrupt:
            session.end()
            raise
        finally:
            if session.maybe_shutdown is not None:
                # Nothing stays behind; if the connection has broken, the box's own limits see to it.
                with suppress(BentoError):
                    box.shutdown(session.maybe_shutdown)
    finish(outcome, session, talk, as_json=as_json, seconds=round(time.monotonic() - started, 3))
