"""`bento-tor function list`: the functions that ship."""

from __future__ import annotations

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.client import catalogue


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the functions that ship: what each does, and what it asks of a box beyond the usual."""
    found = catalogue.shipped()
    if as_json:
        ui.result_json({"functions": [msgspec.to_builtins(entry) for entry in found]})
        return
    width = max((len(entry.name) for entry in found), default=0)
    for entry in found:
        ui.result(f"{entry.name:<{width}}  {entry.line}")
        if entry.asks:
            ui.result(f"{'':<{width}}  asks for: {', '.join(entry.asks)}")
