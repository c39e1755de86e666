"""`bento-tor resume`: a paused box takes work again."""

from __future__ import annotations

from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, order, state_option


@click.command()
@state_option
@json_option
def command(state: Path | None, as_json: bool) -> None:
    """Take new work again after 'pause', or after a 'drain' that is not done yet."""
    told = order(box_folder(state), "resume")
    if as_json:
        ui.result_json(told)
    else:
        ui.result("the box takes new work")
