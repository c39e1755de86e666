"""`bento-tor client close`: end a session."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_session, pass_reach
from bento_tor.cli.options import json_option


@click.command()
@click.argument("name")
@json_option
@pass_reach
def command(name: str, as_json: bool, reach: Reach) -> None:
    """End the session NAME: its function stops now. The stored function stays."""
    from bento_tor.cli.client.remember import forget_session

    known_as, kept = find_session(name)
    with ui.progress(f"ending {name} at {kept.box}"), reach.box(kept.box) as box:
        session = box.attach(kept.session, offset=kept.offset)
        session.wait_attached()
        session.end()
        outcome = session.wait()
    forget_session(known_as)
    if as_json:
        ui.result_json({"session": name, "outcome": outcome.word})
    else:
        ui.result(f"{name} has ended ({outcome.word})")
