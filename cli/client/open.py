"""`bento-tor client open`: attach to a session."""

from __future__ import annotations

from functools import partial

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.client.talk import Talk, finish
from bento_tor.cli.options import json_option


@click.command()
@click.argument("name")
@click.option("--raw", is_flag=True, help="Write messages as they are: no newline after text.")
@click.option("-o", "--output", metavar="FILE", help="Write the output, as it is, into this file.")
@json_option
@pass_reach
def command(name: str, raw: bool, output: str | None, as_json: bool, reach: Reach) -> None:
    """Attach to the session NAME: its output from where you stopped reading, lines of standard input as its input.

    It ends when the function ends. Ctrl-C leaves the session running."""
    from bento_tor.cli.client.remember import forget_session, keep_place

    known_as, kept = find_session(name)
    talk = Talk(raw=raw, file=output, as_json=as_json)
    with ui.progress(f"connecting to {kept.box}"):
        box = reach.box(kept.box).__enter__()
    with box:
        session = box.attach(kept.session, offset=kept.offset)
        # What is acknowledged is forgotten there: even after kill -9 we must know where to go on.
        session.before_ack = partial(keep_place, known_as)
        try:
            outcome = talk.carry(session)
        except BaseException as why:
            # Whatever cut us off, the box has forgotten what we acknowledged: go on from there next time.
            keep_place(known_as, session.offset)
            if not isinstance(why, KeyboardInterrupt):
                raise
            session.detach()
            ui.say(f"left running: 'bento-tor client open {name}' comes back to it")
            raise
    forget_session(known_as)
    finish(outcome, session, talk, as_json=as_json)
