"""`bento-tor function show`: one of the functions that ship, or any file's."""

from __future__ import annotations

import sys

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.client.calls import load_source
from bento_tor.cli.completion import complete_source
from bento_tor.cli.options import json_option
from bento_tor.client import catalogue


@click.command()
@click.argument("name", shell_complete=complete_source)
@json_option
def command(name: str, as_json: bool) -> None:
    """Print the text of NAME: a function that ships, or a file. With --json what it says of itself: docstring and
    manifest."""
    function = load_source(name)
    if as_json:
        ui.result_json(msgspec.to_builtins(catalogue.describe(function)))
    elif sys.stdout.isatty():
        ui.write_text(function.text)
    else:
        ui.write_bytes(function.text.encode())
