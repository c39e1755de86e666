"""`bento-tor takedown`: the operator erases one function."""

from __future__ import annotations

from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.command()
@click.argument("public_id", metavar="PUBLIC-ID")
@click.option("--state", metavar="DIR", type=click.Path(path_type=Path), help="The box's state folder.")
@json_option
def command(public_id: str, state: Path | None, as_json: bool) -> None:
    """Erase the function with this public id, and end its sessions. The box may be running or stopped."""
    from bento_tor.config import data_dir
    from bento_tor.server import operator

    folder = (state or data_dir() / "box").absolute()
    public_id = public_id.strip().lower()
    if not public_id.isalnum():
        raise ConfigError(f"{public_id!r} is no public id", hint="'client upload' prints one: 16 letters and digits")
    if operator.maybe_ask(folder / "operator.sock", "takedown", public_id) is None:
        _take_down_stopped(folder, public_id)
    if as_json:
        ui.result_json({"erased": public_id})
    else:
        ui.result(f"{public_id} is erased")


def _take_down_stopped(folder: Path, public_id: str) -> None:
    from bento_tor.server.stopped import open_store

    if not (folder / "box" / "box.db").exists():
        raise ConfigError(f"{folder} is no box's state folder", hint="name it with --state")
    with open_store(folder) as maybe_store:
        if maybe_store is None or maybe_store.erase_public(public_id) is None:
            raise ConfigError(f"this box has no function with the public id {public_id!r}")
