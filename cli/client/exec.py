"""`bento-tor client exec`: start a stored function, and leave it running."""

from __future__ import annotations

import click

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, find_function, no_keyring_option, pass_reach
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
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
    """Start the stored function NAME with ARGUMENTS, leave it running, and print its session."""
    from bento_tor.client import keyring, source
    from bento_tor.client.tickets import Ticket

    known_as, kept = find_function(name)
    if call_text and arguments:
        raise click.UsageError("give arguments either in --call or after NAME")
    if call_text:
        call = source.parse_call(call_text)
    elif kept.entry:
        call = source.make_call(kept.entry, *[source.literal(argument) for argument in arguments])
    else:
        raise ConfigError("which of its functions to run is not known", hint="name it: --call 'main()'")
    with ui.progress(f"starting {call.name} at {kept.box}"), reach.box(kept.box) as box:
        session = box.start(kept.invocation, call)
        session.wait_attached()
        session.detach()
    ticket = str(Ticket(kept.box, "session", session.token))
    maybe_name = None
    if not no_keyring:
        try:
            with keyring.changing() as ring:
                free = ring.free_name(f"{known_as or call.name}.1")
                ring.sessions[free] = keyring.KeptSession(kept.box, known_as, session.token)
            maybe_name = free
        except ConfigError as error:
            # It runs: without its ticket, printed below, nobody could talk to it.
            ui.warn(f"{error.message}: keep the ticket yourself")
    if as_json:
        ui.result_json({"session": maybe_name, "box": kept.box, "ticket": ticket})
        return
    ui.result(f"running as {maybe_name}" if maybe_name else "running")
    ui.result(f"  session  {ticket}")
