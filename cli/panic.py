"""`bento-tor panic`: kill everything, erase everything, end."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, counted, state_option, wait_for_end
from bento_tor.errors import BentoError, ConfigError, ConnectError


@click.command()
@state_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(state: Path | None, yes: bool, as_json: bool) -> None:
    """Kill all sessions, erase every function and all that is known of sessions from the disk, and end the box.

    Nothing brings them back. The box may be running or stopped; its onion address stays."""
    from bento_tor.server import operator

    folder = box_folder(state)
    if not (folder / "lock").exists():
        raise ConfigError(f"{folder} is no box's state folder", hint="name it with --state")
    if not yes and not _is_sure(folder):
        raise BentoError("nothing is erased: nobody said yes", hint="--yes does it without asking")
    try:
        told = operator.maybe_ask(folder / "operator.sock", "panic")
    except ConnectError as why:
        raise ConnectError(why.message, hint="kill the process of 'bento-tor serve', then panic again") from why
    if told is None:
        told = {"killed": 0, "erased": _erase_stopped(folder)}
    else:
        wait_for_end(folder)
    if as_json:
        ui.result_json(told)
    else:
        ui.result(f"{counted(told['killed'], 'session')} killed, {counted(told['erased'], 'function')} erased")


def _is_sure(folder: Path) -> bool:
    try:
        return click.confirm(f"erase every function of the box in {folder}, for good?", err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        return False


def _erase_stopped(folder: Path) -> int:
    from bento_tor.server.stopped import open_store

    with open_store(folder) as maybe_store:
        return maybe_store.erase_all() if maybe_store is not None else 0
