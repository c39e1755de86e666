"""`bento-tor client recv`: the next message of a session."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.attach import end_of
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.client.remember import keep_place
from bento_tor.cli.client.talk import Talk, finish, write_message
from bento_tor.cli.completion import complete_session
from bento_tor.cli.options import json_option


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_session)
@click.option("--raw", is_flag=True, help="Write the message as it is: no newline after text.")
@json_option
@pass_reach
def command(name: str, raw: bool, as_json: bool, reach: Reach) -> None:
    """Wait for the next message of SESSION, print it, and leave the session running.

    If the function has ended instead, say how."""
    known_as, kept = find_session(name)
    talk = Talk(raw=raw, file=None, as_json=as_json)
    with ui.progress(f"waiting for {name}"), reach.box(kept.box, remember=bool(known_as)) as box:
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        message = session.maybe_receive(timeout_s=reach.timeout_s)
        if message is not None:
            session.detach()
        else:
            end_of(known_as, kept, session.wait(), session, box)
    if message is None:
        finish(session.wait(), session, talk, as_json=as_json)
        ui.say("the function has returned; there are no more messages")
        return
    keep_place(known_as, session.offset)
    write_message(message, talk, as_json=as_json)
