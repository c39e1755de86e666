"""`bento-tor client exec`: start a stored function, and leave it running."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.calls import CallingCommand, call_of_kept
from bento_tor.cli.client.reach import Reach, find_function, no_keyring_option, pass_reach
from bento_tor.cli.client.remember import keep_session
from bento_tor.cli.completion import complete_function
from bento_tor.cli.options import json_option
from bento_tor.client.keyring import KeptSession
from bento_tor.client.tickets import Ticket


@click.command(cls=CallingCommand)
@click.argument("name", shell_complete=complete_function)
@click.argument("arguments", nargs=-1)
@click.option("--call", "call_text", metavar="'NAME(LITERALS)'", help="Run this call instead of the entry.")
@no_keyring_option
@json_option
@pass_reach
def command(
    name: str,
    arguments: tuple[str, ...],
    call_text: str | None,
    no_keyring: bool,
    as_json: bool,
    reach: Reach,
) -> None:
    """Start the stored function NAME with ARGUMENTS, leave it running, and print its session.

    Arguments that begin with a dash and are no numbers stand behind --."""
    known_as, kept = find_function(name)
    call = call_of_kept(kept, arguments, call_text)
    with ui.progress(f"starting {call.name} at {kept.box}"), reach.box(kept.box, remember=not no_keyring) as box:
        session = box.start(kept.invocation, call)
        session.wait_attached()
        session.detach()
    ticket = str(Ticket(kept.box, "session", session.token))
    # It runs: where it cannot be kept, nobody could talk to it but for the ticket.
    made = KeptSession(kept.box, known_as, session.token)
    maybe_name = None if no_keyring else keep_session(known_as or call.name, made)
    if as_json:
        ui.result_json({"session": maybe_name, "box": kept.box, "ticket": ticket})
        return
    ui.result(f"running as {maybe_name}" if maybe_name else "running")
    ui.result(f"  session  {ticket}")
