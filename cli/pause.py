"""`bento-tor pause`: a box that takes no new work."""

from __future__ import annotations

from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, counted, order, state_option


@click.command()
@state_option
@json_option
def command(state: Path | None, as_json: bool) -> None:
    """Take no new functions and start none. What runs goes on. Ends with 'resume', or when the box is started anew."""
    told = order(box_folder(state), "pause")
    if as_json:
        ui.result_json(told)
    else:
        ui.result(f"the box takes no new work; {counted(told['running'], 'session')} still running")
