"""`bento-tor image`: build, list and check what functions see."""

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
    """Build, list and check what functions see: an interpreter and its packages."""


@command.command()
@click.argument("name", default="python")
@click.option(
    "--requirements",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="For an image of your own: pip's file, with every package and its version.",
)
@dir_option
@json_option
def build(name: str, requirements: Path | None, images_dir: Path | None, as_json: bool) -> None:
    """Build the image NAME (python, browser), unless it is up to date.

    The interpreter is the system's /usr/bin/python3; Chromium, in `browser`, is Debian's. Packages come as wheels, just
    those that are named; nothing of them runs while they are installed. Offer an image to functions by the policy's
    `images`."""
    folder = (images_dir or images.default_dir()).absolute()
    image = images.build(name, folder, ui.say, maybe_requirements=requirements)
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
            browser = f"  Chromium {image.browser}" if image.browser else ""
            ui.result(f"{image.name}  Python {image.version}{browser}  {image.digest[:12]}  {image.path}")


@command.command()
@click.argument("name", default="python")
@dir_option
@json_option
def check(name: str, images_dir: Path | None, as_json: bool) -> None:
    """Check the image NAME: its files are those that it was built with, and a function runs in it."""
    from bento_tor.sandbox import trial
    from bento_tor.sandbox.jail import Jail

    image = images.load((images_dir or images.default_dir()).absolute(), name)
    with ui.progress(f"checking {name}"):
        images.check(image)
        with Jail(image) as jail:
            trial.check(jail)
    if as_json:
        ui.result_json(_facts(image))
    else:
        ui.result(f"{name} is as it was built ({image.digest[:12]}), and a function runs in it")


def _facts(image: images.Image) -> dict[str, str]:
    facts = {"name": image.name, "python": image.version, "digest": image.digest, "path": str(image.path)}
    return facts | ({"chromium": image.browser} if image.browser else {})
