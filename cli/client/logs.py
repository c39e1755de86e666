"""`bento-tor client logs`: what a session's function printed."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import find_session
from bento_tor.cli.completion import complete_any_session
from bento_tor.cli.options import json_option
from bento_tor.client.keyring import RUNNING


@click.command()
@click.argument("name", metavar="SESSION", shell_complete=complete_any_session)
@json_option
def command(name: str, as_json: bool) -> None:
    """What the function of SESSION printed, its last 4 KiB, as the box told it at the end.

    Of a function's name: its newest session. While a session runs nothing of it is known here."""
    known_as, kept = find_session(name, ended_too=True)
    log = kept.log.decode("utf-8", "replace")
    if as_json:
        ui.result_json({"session": known_as or None, "state": kept.state, "printed": log})
        return
    if kept.state == RUNNING:
        ui.say(f"{known_as or 'it'} still runs, as far as is known: the box tells what it printed when it ends")
    elif not log:
        ui.say(f"{known_as} printed nothing ({kept.state})")
    else:
        ui.result(ui.escape(log).removesuffix("\n"))
