"""`bento-tor function`: a place for who writes functions. One file per command."""

from __future__ import annotations

import click

from bento_tor.cli.main import LazyGroup

COMMANDS = {
    "check": "what a box would find fault with, without running it",
    "list": "the functions that ship",
    "new": "begin a function of your own from a template",
    "show": "the text of a function that ships, or what it asks for",
    "test": "run a function in a sandbox on this machine, without Tor",
}


@click.group(cls=LazyGroup, commands_help=COMMANDS, package="bento_tor.cli.function")
def command() -> None:
    """Write functions: begin one, check it, try it on this machine, look at those that ship.

    docs/writing-functions.md is about all of it."""
