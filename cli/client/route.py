"""`bento-tor client route`: by which relays a box is reached."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.options import json_option
from bento_tor.client.route import parse_address
from bento_tor.errors import ConfigError


@click.group()
def command() -> None:
    """How a box is reached."""


@command.command()
@box_option
@json_option
@pass_reach
def show(box_address: str, as_json: bool, reach: Reach) -> None:
    """Build a circuit that ends at the box's relay, and print its path, first hop first.

    The circuit goes with the command. Others take the same first hop, one of your tor's entry guards; the hop in the
    middle is drawn anew by each command."""
    address = parse_address(box_address)
    if address.route != "exit":
        raise ConfigError(
            "the path to an onion service is tor's own affair: only the exit route has one to show",
            hint="name the box by its relay's fingerprint, or by its nickname with --route exit",
        )
    with ui.progress(f"building a circuit to {address.host}"):
        path = reach.exit_route().path(address)
    if as_json:
        hops = [{"fingerprint": relay.fingerprint, "nickname": relay.nickname} for relay in path]
        ui.result_json({"box": str(address), "path": hops})
        return
    for name, relay in zip(("guard", "middle", "last"), path, strict=True):
        ui.result(f"{name:<7} {relay.fingerprint} {ui.escape(relay.nickname)}")
