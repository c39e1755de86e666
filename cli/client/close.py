"""`bento-tor client close`: end a session."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.attach import end_of
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.completion import complete_session
from bento_tor.cli.options import json_option


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_session)
@json_option
@pass_reach
def command(name: str, as_json: bool, reach: Reach) -> None:
    """End SESSION: its function stops now. The stored function stays."""
    known_as, kept = find_session(name)
    with ui.progress(f"ending {name} at {kept.box}"), reach.box(kept.box, remember=bool(known_as)) as box:
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        session.end()
        outcome = session.wait()
        end_of(known_as, kept, outcome, session, box)
    if as_json:
        ui.result_json({"session": name, "outcome": outcome.word})
    else:
        ui.result(f"{name} has ended ({outcome.word})")
