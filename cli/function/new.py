"""`bento-tor function new`: a file to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.client import template
from bento_tor.errors import ConfigError


@click.command()
@click.argument("name")
@click.option(
    "--dir", "folder", metavar="DIR", default=".", type=click.Path(path_type=Path), help="Where.  [default: here]"
)
def command(name: str, folder: Path) -> None:
    """Write NAME.py: a small function that works, with every key of a manifest explained. Never overwrites a file."""
    name = template.check_name(name.removesuffix(".py"))
    path = folder / f"{name}.py"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template.render(name))
    except FileExistsError as why:
        raise ConfigError(f"{path} is there already", hint="choose another name, or another folder with --dir") from why
    except OSError as why:
        raise ConfigError(f"cannot write {path}: {why.strerror}", hint="choose another folder with --dir") from why
    ui.result(str(path))
    ui.say(f"next: bento-tor function check {path}; bento-tor function test {path} Ada --input hello")
