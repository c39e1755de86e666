"""`bento-tor client upload`: store a function at a box."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.calls import entry_of, image_option, load_source
from bento_tor.cli.client.reach import Reach, box_option, no_keyring_option, pass_reach
from bento_tor.cli.client.remember import keep_function
from bento_tor.cli.completion import complete_source
from bento_tor.cli.options import json_option
from bento_tor.client import keyring
from bento_tor.client.keyring import Kept
from bento_tor.client.tickets import Ticket


@click.command()
@click.argument("file", shell_complete=complete_source)
@click.option("--name", metavar="NAME", help="Its name in your keyring; by default the file's.")
@image_option
@no_keyring_option
@box_option
@json_option
@pass_reach
def command(
    file: str,
    name: str | None,
    image: str | None,
    no_keyring: bool,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Store FILE (or a function that ships) at a box, and print its tickets.

    The invocation ticket lets its holder run the function; the shutdown ticket lets her erase it. Both are secrets."""
    function = load_source(file, image)
    wanted = "" if no_keyring else keyring.check_name(function.name if name is None else name)
    with (
        ui.bar(f"storing {function.name} at {box_address}", len(function.text.encode())) as sent,
        reach.box(box_address, remember=not no_keyring) as box,
    ):
        box.on_sent(sent)
        stored = box.upload(function)
    kept = Kept(box_address, stored.invocation, stored.shutdown_token, entry_of(function))
    # It is stored: where it cannot be kept, nobody could use or erase it but for the tickets.
    maybe_name = None if no_keyring else keep_function(wanted, kept)
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
