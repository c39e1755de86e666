"""`bento-tor client`: upload functions to boxes, and use them. One file per command."""

from __future__ import annotations

import click

from bento_tor.cli.main import LazyGroup

COMMANDS = {
    "auth": "keys for boxes that let in only whom they know",
    "attach": "come back to a session: its output, and your input",
    "browse": "a web page by way of a box, made harmless before it is seen",
    "close": "end a session",
    "detach": "let go of a session, wherever it is attached",
    "exec": "start a stored function, and leave it running",
    "keys": "what your keyring holds: list, rename, forget, export, import",
    "logs": "what a session's function printed",
    "policy": "what a box is willing to do",
    "recv": "the next message of a session",
    "route": "how a box is reached: the path of a circuit",
    "run": "store, run and erase a function in one go",
    "send": "send a message to a session",
    "sessions": "your sessions, and how far you have read them",
    "shell": "use a box interactively",
    "shutdown": "erase a stored function, and end its sessions",
    "upload": "store a function at a box",
}
# The words of 2021.
ALIASES = {"open": "attach", "store": "upload"}


@click.group(cls=LazyGroup, commands_help=COMMANDS, aliases=ALIASES, package="bento_tor.cli.client")
def command() -> None:
    """Upload functions to boxes, and use them.

    A function is one file of Python, or the name of one that ships. What you store is remembered in your keyring
    under a short name; where a command takes a NAME, it also takes @FILE or - (standard input) with a ticket."""
