"""`bento-tor client detach`: let go of a session."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.client.remember import note_left
from bento_tor.cli.completion import complete_session
from bento_tor.cli.options import json_option


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_session)
@json_option
@pass_reach
def command(name: str, as_json: bool, reach: Reach) -> None:
    """Make whoever is attached to SESSION, here or on another machine, let go of it. The function goes on.

    In a command that is attached, Ctrl-C does the same."""
    known_as, kept = find_session(name)
    with ui.progress(f"asking {kept.box}"), reach.box(kept.box, remember=bool(known_as)) as box:
        # The newest to attach wins; nothing is read here, so nothing is lost.
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        session.detach()
    note_left(known_as)
    come_back = f"bento-tor client attach {known_as or name}"
    if as_json:
        ui.result_json({"session": known_as or None, "attach": come_back})
    else:
        ui.result(f"nobody is attached now: '{come_back}' comes back to it")
