"""Options that commands share, so that one word means one thing everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """How long to wait: at least `min_s`, at most a week. What is no number (nan) is refused too."""

    name = "number of seconds"

    def __init__(self, min_s: float) -> None:
        super().__init__(min=min_s, max=604_800)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def json_option(command: F) -> F:
    """`--json`: one object on standard output instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def tor_options(command: F) -> F:
    """`--socks`, `--control`, `--network`, `--timeout`: which tor to use, and for how long to try."""
    for option in reversed(
        [
            click.option(
                "--socks",
                metavar="HOST:PORT|unix:PATH",
                envvar="BENTO_TOR_SOCKS",
                help="Tor's SOCKS port.",
            ),
            click.option(
                "--control",
                metavar="HOST:PORT|unix:PATH",
                envvar="BENTO_TOR_CONTROL",
                help="Tor's control port.",
            ),
            click.option(
                "--network",
                "network_dir",
                metavar="DIR",
                envvar="BENTO_TOR_NETWORK",
                help="Take both from a private network.",
            ),
            click.option(
                "--timeout",
                "timeout_s",
                type=Seconds(0.1),
                default=120.0,
                show_default=True,
                metavar="SECONDS",
                help="Give up after this long.",
            ),
        ]
    ):
        command = option(command)
    return command
