"""`bento-tor client policy`: what a box is willing to do."""

from __future__ import annotations

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.options import json_option


@click.command()
@box_option
@json_option
@pass_reach
def command(box_address: str, as_json: bool, reach: Reach) -> None:
    """Fetch and print the policy of a box."""
    with ui.progress(f"asking {box_address}"), reach.box(box_address, remember=False) as box:
        policy = box.policy()
    fields = msgspec.to_builtins(policy)
    if as_json:
        ui.result_json(fields)
        return
    for name, value in {**fields, **{f"limits.{key}": v for key, v in fields.pop("limits").items()}}.items():
        if name != "limits":
            text = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
            ui.result(f"{name:<22} {ui.escape(text)}")
