"""`bento-tor client list`: what the keyring holds. Never a token."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """The functions and sessions in your keyring."""
    from bento_tor.client import keyring

    ring = keyring.read()
    if as_json:
        ui.result_json(
            {
                "functions": {name: {"box": kept.box} for name, kept in sorted(ring.functions.items())},
                "sessions": {
                    name: {"box": kept.box, "function": kept.function, "offset": kept.offset}
                    for name, kept in sorted(ring.sessions.items())
                },
            }
        )
        return
    if not ring.functions and not ring.sessions:
        ui.say("your keyring is empty: 'bento-tor client upload' fills it")
    for name, kept in sorted(ring.functions.items()):
        ui.result(f"function  {name:<20} {kept.box}")
    for name, session in sorted(ring.sessions.items()):
        ui.result(f"session   {name:<20} {session.box}")
