"""`bento-tor client upload`: store a function at a box."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, no_keyring_option, pass_reach
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.command()
@click.argument("file")
@click.option("--name", metavar="NAME", help="Its name in your keyring; by default the file's.")
@no_keyring_option
@box_option
@json_option
@pass_reach
def command(file: str, name: str | None, no_keyring: bool, box_address: str, as_json: bool, reach: Reach) -> None:
    """Store FILE (or a function that ships) at a box, and print its tickets.

    The invocation ticket lets its holder run the function; the shutdown ticket lets her erase it. Both are secrets."""
    from bento_tor.client import keyring, source
    from bento_tor.client.tickets import Ticket

    function = source.load(file)
    wanted = "" if no_keyring else keyring.check_name(function.name if name is None else name)
    with (
        ui.progress(f"storing {function.name} at {box_address}"),
        reach.box(box_address, remember=not no_keyring) as box,
    ):
        stored = box.upload(function)
    kept = keyring.Kept(
        box_address,
        stored.invocation,
        stored.shutdown_token,
        function.manifest.entry or (function.name if function.name in function.functions else ""),
    )
    maybe_name = None
    if not no_keyring:
        try:
            with keyring.changing() as ring:
                free = ring.free_name(wanted)
                ring.functions[free] = kept
            maybe_name = free
        except ConfigError as error:
            # It is stored: without its tickets, printed below, nobody could use or erase it.
            ui.warn(f"{error.message}: keep the tickets yourself")
    invocation = str(Ticket(box_address, "invocation", stored.invocation))
    shutdown = str(Ticket(box_address, "shutdown", stored.shutdown_token or b""))
    if as_json:
        facts = {"name": maybe_name, "box": box_address, "public_id": stored.public_id}
        ui.result_json(facts | {"invocation": invocation, "shutdown": shutdown})
        return
    ui.result(f"stored as {maybe_name}" if maybe_name else "stored")
    ui.result(f"  invocation  {invocation}")
    ui.result(f"  shutdown    {shutdown}")
    ui.result(f"  public id   {ui.escape(stored.public_id)}")
