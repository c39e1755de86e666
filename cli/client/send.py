"""`bento-tor client send`: one message to a session."""

from __future__ import annotations

import os
import sys

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.completion import complete_session
from bento_tor.cli.options import json_option
from bento_tor.errors import Refused


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_session)
@click.argument("text")
@json_option
@pass_reach
def command(name: str, text: str, as_json: bool, reach: Reach) -> None:
    """Send TEXT (or, for -, all of standard input) as one message to SESSION, and leave it running."""
    known_as, kept = find_session(name)
    data = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    with ui.progress(f"sending to {kept.box}"), reach.box(kept.box, remember=bool(known_as)) as box:
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        sent = session.send(data)
        session.detach()
    if not sent:
        raise Refused(f"the function of {name} has ended: it did not get this", hint="'client recv' says how it ended")
    if as_json:
        ui.result_json({"session": name, "sent_bytes": len(data)})
