"""`bento-tor image`: build and list what functions see."""

from __future__ import annotations

from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.sandbox import images

dir_option = click.option(
    "--dir",
    "images_dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where images are kept.  [default: {images.default_dir()}]",
)


@click.group()
def command() -> None:
    """Build and list what functions see: an interpreter and its packages."""


@command.command()
@click.argument("name", default="python")
@dir_option
@json_option
def build(name: str, images_dir: Path | None, as_json: bool) -> None:
    """Build the image NAME (python), unless it is up to date.

    The interpreter is the system's /usr/bin/python3; the packages are pinned."""
    image = images.build(name, (images_dir or images.default_dir()).absolute(), ui.say)
    if as_json:
        ui.result_json(_facts(image))


@command.command("list")
@dir_option
@json_option
def list_(images_dir: Path | None, as_json: bool) -> None:
    """List the images that have been built."""
    found = images.built((images_dir or images.default_dir()).absolute())
    if as_json:
        ui.result_json({"images": [_facts(image) for image in found]})
    elif not found:
        ui.say("no image has been built: 'bento-tor image build' makes one")
    else:
        for image in found:
            ui.result(f"{image.name}  Python {image.version}  {image.digest[:12]}  {image.path}")


def _facts(image: images.Image) -> dict[str, str]:
    return {"name": image.name, "python": image.version, "digest": image.digest, "path": str(image.path)}
