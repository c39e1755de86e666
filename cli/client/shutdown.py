"""`bento-tor client shutdown`: erase a stored function."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_function, pass_reach
from bento_tor.cli.client.remember import forget_function
from bento_tor.cli.completion import complete_function
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.command()
@click.argument("name", shell_complete=complete_function)
@json_option
@pass_reach
def command(name: str, as_json: bool, reach: Reach) -> None:
    """Erase the function NAME at its box, and end its sessions. Wants its shutdown ticket, or its name."""
    known_as, kept = find_function(name)
    if kept.shutdown is None:
        raise ConfigError("this ticket cannot erase the function", hint="its shutdown ticket can")
    with ui.progress(f"erasing {name} at {kept.box}"), reach.box(kept.box, remember=bool(known_as)) as box:
        box.shutdown(kept.shutdown)
    if known_as:
        forget_function(known_as)
    if as_json:
        ui.result_json({"name": name, "box": kept.box, "erased": True})
    else:
        ui.result(f"{name} is erased")
