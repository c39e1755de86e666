"""Where the commands for authors find images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bento_tor.sandbox import images

F = TypeVar("F", bound=Callable[..., Any])


def images_option(command: F) -> F:
    """`--images`, as `images_dir`."""
    return click.option(
        "--images",
        "images_dir",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda ctx, param, value: (value or images.default_dir()).absolute(),
        help="Where images are.",
    )(command)
