"""`bento-tor drain`: finish what runs, then end the box."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, counted, maybe_state, order, state_option, wait_for_end
from bento_tor.errors import BentoError

_LOOK_S = 0.5


@click.command()
@state_option
@click.option("--no-wait", is_flag=True, help="Come back at once; the box ends by itself when it is done.")
@json_option
def command(state: Path | None, no_wait: bool, as_json: bool) -> None:
    """Take no new work, and end the box when nothing runs and every reader has had what waits for it.

    Output that nobody comes for waits as long as the policy's output_hours. Ctrl-C ends the waiting only."""
    folder = box_folder(state)
    told = order(folder, "drain")
    if not no_wait:
        _wait(folder, told)
    if as_json:
        ui.result_json({**told, "ended": True} if not no_wait else {**told, "ended": False})
    else:
        ui.result(_left(told) if no_wait else "the box has ended")


def _wait(folder: Path, told: dict[str, Any]) -> None:
    with ui.progress(_left(told)) as shown:
        now: dict[str, Any] | None = told
        while now is not None:
            if not now["draining"]:
                raise BentoError("the box takes work again: somebody has called the drain off with 'resume'")
            shown.update(_left(now))
            time.sleep(_LOOK_S)
            now = maybe_state(folder)
        wait_for_end(folder)


def _left(told: dict[str, Any]) -> str:
    running, waiting = told["running"], told["waiting"]
    return f"{running + waiting} left: {counted(running, 'session')} running, {waiting} with output for their readers"
