"""`bento-tor client`: upload functions to boxes, and use them. One file per command."""

from __future__ import annotations

import click

from bento_tor.cli.main import LazyGroup

COMMANDS = {
    "close": "end a session",
    "exec": "start a stored function, and leave it running",
    "list": "the functions and sessions in your keyring",
    "open": "attach to a session: its output, and your input",
    "policy": "what a box is willing to do",
    "recv": "the next message of a session",
    "run": "store, run and erase a function in one go",
    "send": "send a message to a session",
    "shutdown": "erase a stored function, and end its sessions",
    "upload": "store a function at a box",
}


@click.group(cls=LazyGroup, commands_help=COMMANDS, package="bento_tor.cli.client")
def command() -> None:
    """Upload functions to boxes, and use them.

    A function is one file of Python, or the name of one that ships. What you store is remembered in your keyring
    under a short name; where a command takes a NAME, it also takes @FILE or - (standard input) with a ticket."""
