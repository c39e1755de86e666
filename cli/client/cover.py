"""`bento-tor client cover`: constant traffic to a box and back, in which anything may ride."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.calls import CallingCommand, call_of, load_source
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.client.run import erase
from bento_tor.cli.client.talk import Talk, finish
from bento_tor.cli.completion import complete_source
from bento_tor.cli.options import json_option
from bento_tor.client.cover import Cover, Pace
from bento_tor.errors import BentoError


@click.command(cls=CallingCommand)
@click.argument("file", required=False, shell_complete=complete_source)
@click.argument("arguments", nargs=-1)
@click.option("--rate", type=float, default=19920.0, show_default=True, help="Bytes per second, each way.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long, whatever happens.")
@click.option("--jitter", type=float, default=0.0, show_default=True, help="The part of each slot left to chance.")
@click.option("--call", "call_text", metavar="'NAME(LITERALS)'", help="Run this call instead of the entry.")
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, into this file.")
@box_option
@json_option
@pass_reach
def command(
    file: str | None,
    arguments: tuple[str, ...],
    rate: float,
    seconds: float,
    jitter: float,
    call_text: str | None,
    raw: bool,
    output: str | None,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Keep constant traffic to a box and back, so that who watches your link cannot tell what is under way.

    FILE (or a function that ships) runs under it, with ARGUMENTS, as by `client run`; without FILE lines of standard
    input come back. It ends when the seconds are over, and not before: Ctrl-C can be seen from outside."""
    pace = Pace.of(rate, seconds, jitter)
    inner = load_source(file) if file is not None else None
    call = call_of(inner, arguments, call_text) if inner is not None else None
    source = pace.asking(load_source("cover"), inner)
    talk = Talk(raw=raw, file=output, as_json=as_json)
    with ui.progress(f"connecting to {box_address}"):
        box = reach.box(box_address, remember=False).__enter__()
    with box:
        # The policy first: a first visit would else be seen in the middle.
        box.policy()
        session = box.run(source, pace.call())
        ui.say(f"covering for {pace.seconds:g} seconds with {pace.rate:.0f} bytes a second each way")
        try:
            with Cover(session, pace) as cover:
                if inner is not None and call is not None:
                    cover.run(inner, call)
                outcome = talk.carry(cover)
        except KeyboardInterrupt:
            session.end()
            raise
        finally:
            talk.close()
            erase(box, session)
    more = {"slot_bytes": pace.slot_bytes, "slots": pace.slots, "seconds": pace.seconds, "complete": cover.complete}
    finish(outcome, cover, talk, as_json=as_json, **more)
    if cover.unsent_bytes or (inner is not None and not cover.complete):
        raise BentoError("the cover was over before everything had come", hint="more --seconds, or a higher --rate")
