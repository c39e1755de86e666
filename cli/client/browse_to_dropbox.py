"""`bento-tor client browse-to-dropbox`: have a page fetched on one box and left, sealed, at another."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click
from msgspec import structs

from bento_tor import resources
from bento_tor.cli import ui
from bento_tor.cli.client.dropbox import limit_options, tell_ticket, write_ticket
from bento_tor.cli.client.reach import Reach, box_option, no_keyring_option, pass_reach
from bento_tor.cli.client.run import Leaving
from bento_tor.cli.completion import complete_box
from bento_tor.cli.options import json_option
from bento_tor.client import browsing, dropbox
from bento_tor.client.dropbox import Limits
from bento_tor.client.route import parse_address
from bento_tor.client.sealing import public_key, sealed_bytes
from bento_tor.client.session import Session
from bento_tor.client.source import Source, make_call, parse
from bento_tor.client.tickets import DropTicket
from bento_tor.errors import BentoError, ConfigError, FunctionFailed

_KIB = 1024
_MIB = 1024 * 1024
_FUNCTION = "browse_to_dropbox"


@click.command()
@click.argument("url")
@click.option(
    "--dropbox-box",
    metavar="ADDRESS",
    required=True,
    shell_complete=complete_box,
    help="The onion address of the box at which it is left; it may be the same.",
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the ticket into FILE.")
@click.option(
    "--egress",
    type=click.Choice(["exit", "tor"]),
    default="exit",
    show_default=True,
    help="How the first box gets the page: straight, under its relay's exit policy, or through circuits.",
)
@click.option(
    "--padding",
    "padding_kib",
    type=click.IntRange(0, 64 * _KIB),
    default=256,
    show_default=True,
    metavar="KIB",
    help="What the second box sees is a multiple of so much; 0: the page's own size.",
)
@click.option(
    "--most",
    "most_mib",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    metavar="MIB",
    help="A page that is longer is left out, and the error is left instead.",
)
@click.option("--page-timeout", type=click.IntRange(1, 600), default=60, show_default=True, metavar="SECONDS")
@click.option("--wait", is_flag=True, help="Stay until it is there. Without it this command leaves at once.")
@limit_options(1)
@no_keyring_option
@box_option
@json_option
@pass_reach
def command(
    url: str,
    dropbox_box: str,
    output: Path | None,
    egress: Literal["exit", "tor"],
    padding_kib: int,
    most_mib: int,
    page_timeout: int,
    wait: bool,
    expires_s: int,
    max_gets: int,
    no_keyring: bool,
    box_address: str,
    as_json: bool,
    reach: Reach,
) -> None:
    """Have URL fetched on one box and left at another, and print the ticket that collects it: 'client dropbox page'.

    The first box sees the page, and not who asks for it; the second one holds it sealed, and sees neither. Nobody need
    wait: both boxes go on when this command has ended, in whatever way."""
    if parse_address(dropbox_box).route != "onion":
        raise ConfigError(f"{dropbox_box} is no onion address", hint="a function reaches other boxes by those only")
    ticket = DropTicket(dropbox_box, secrets.token_bytes(32), secrets.token_bytes(32), to_key=True)
    padding, most = padding_kib * _KIB, most_mib * _MIB
    room = sealed_bytes(most + max(padding, 64 * _KIB))
    function = _function(egress)
    key = public_key(ticket.secret)
    call = make_call(_FUNCTION, browsing.address(url), dropbox_box, ticket.token, key, padding, page_timeout, most)
    if output is not None:
        write_ticket(str(ticket), output)
    with ui.progress(f"making a drop box at {dropbox_box}"), reach.box(dropbox_box, remember=not no_keyring) as box:
        dropbox.prepare(box, ticket, Limits(expires_s, max_gets), max_bytes=room)
    begun = False
    try:
        with ui.progress(f"starting at {box_address}"), reach.box(box_address, remember=not no_keyring) as box:
            session = box.run(function, call)
            session.wait_attached()
            begun = True
            come_back = Leaving(box_address, function, session, no_keyring=no_keyring).note(0)
            if wait:
                _wait(session)
            else:
                session.detach()
    except (BentoError, KeyboardInterrupt):
        if not begun:  # nobody will fill it
            with suppress(BentoError), reach.box(dropbox_box, remember=not no_keyring) as box:
                dropbox.erase(box, ticket)
        raise
    ui.detail(f"how it went: '{come_back}'")
    tell_ticket(str(ticket), output, {"box": box_address, "dropbox_box": dropbox_box}, as_json=as_json)


def _wait(session: Session) -> None:
    outcome = session.wait()
    if not outcome.succeeded:
        why = outcome.detail.strip().splitlines()[-1:] or [outcome.word]
        raise FunctionFailed(f"the page was not left there: {ui.escape(why[0])}")


def _function(egress: Literal["exit", "tor"]) -> Source:
    """The function as it ships, with that way out."""
    # Not by its name: a file of that name in the user's folder would be taken instead.
    shipped = parse(_FUNCTION, resources.read_text("functions", f"{_FUNCTION}.py"))
    return structs.replace(shipped, manifest=structs.replace(shipped.manifest, egress=egress))
