"""`bento-tor audit`: what happened at a box."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, order, state_option


@click.command()
@state_option
@click.option("--since", type=click.IntRange(0, 10**18 - 1), default=0, metavar="N", help="Only events after number N.")
@json_option
def command(state: Path | None, since: int, as_json: bool) -> None:
    """Print the single events of the running box where its settings keep them, else rounded counts by the hour."""
    told = order(box_folder(state), "audit", str(since))
    if as_json:
        ui.result_json(told)
    elif told["enabled"]:
        for event in told["events"]:
            ui.result(f"{event['number']:>6}  {_time(event['at'])}  {event['kind']:<8}{event['word']}")
    else:
        _print_hours(told["hours"])


def _print_hours(hours: list[dict[str, Any]]) -> None:
    ui.say("single events are not kept (audit = true keeps them); full hours of the last day, rounded to eights:")
    for hour in hours:
        for name, count in hour["counts"].items():
            ui.result(f"{_time(hour['begins'])}  {name:<24}{count:>8}")
    if not hours:
        ui.say("no full hour yet in which enough happened to be told")


def _time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
