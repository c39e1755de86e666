"""`bento-tor policy`: write, check and show what a box is willing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.group()
def command() -> None:
    """What your box is willing to do: write it, check it, see it as clients do."""


@command.command()
@click.argument("file", default="policy.toml", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write FILE (policy.toml) with every setting, its meaning and its default. Never overwrites one."""
    from bento_tor.policy.template import render

    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(render())
    except FileExistsError as why:
        raise ConfigError(f"{file} is there already", hint="name another one") from why
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why
    ui.result(f"{file} is written: every setting is at its default")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Read FILE (a policy, or a box's settings with one), and say which line cannot be used."""
    from bento_tor.server.settings import read_policy

    policy = read_policy(file)
    if as_json:
        ui.result_json(msgspec.to_builtins(policy))
    else:
        ui.result(f"{file} can be used")


@command.command()
@click.option("--state", metavar="DIR", type=click.Path(path_type=Path), help="The box's state folder.")
@json_option
def show(state: Path | None, as_json: bool) -> None:
    """Show the policy of the running box, as its clients see it."""
    from bento_tor.client.box import connect
    from bento_tor.config import data_dir

    folder = (state or data_dir() / "box").absolute()
    with connect(f"unix:{folder / 'box.sock'}", timeout_s=10.0) as box:
        policy = box.policy()
    print_policy(msgspec.to_builtins(policy), as_json=as_json)


def print_policy(fields: dict[str, Any], *, as_json: bool) -> None:
    """For people, a line each; or as one object."""
    if as_json:
        ui.result_json(fields)
        return
    limits = {f"limits.{name}": value for name, value in fields.pop("limits").items()}
    images = {
        f"image {name}": [f"digest {facts['digest'][:16]}", f"profile {facts['profile']}", *facts["packages"]]
        for name, facts in fields.pop("found").items()
    }
    for name, value in (fields | limits | images).items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
        ui.result(f"{name:<25} {ui.escape(text)}")
