"""`bento-tor client auth`: keys for boxes that let in only whom they know, kept by the client's tor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bento_tor.cli import ui
from bento_tor.cli.onion_auth import read_secret
from bento_tor.cli.options import json_option, tor_options
from bento_tor.errors import ConfigError


@click.group()
def command() -> None:
    """Keys for boxes that let in only whom they know. Your tor keeps them: it is tor that reads descriptors."""


@command.command()
@click.argument("address")
@click.argument("key", metavar="@FILE|-", required=False)
@click.option("--new", "is_new", is_flag=True, help="Make a key here, and show the public half for the operator.")
@click.option("--dir", "folder", metavar="DIR", help="Write it into tor's ClientOnionAuthDir; no control port needed.")
@json_option
@tor_options
def add(address: str, key: str | None, is_new: bool, folder: str | None, **options: Any) -> None:
    """Give your tor the key for the box at ADDRESS: the line that its operator gave you, in a file or on standard
    input."""
    from bento_tor.cli.onion import reach
    from bento_tor.controller import client_auth
    from bento_tor.controller.onion import is_onion_address

    address = _bare(address)
    if not is_onion_address(address):
        raise ConfigError(f"{address} is not an onion address", hint="one letter is mistyped")
    if is_new == (key is not None):
        raise click.UsageError("the key's line is in @FILE or on standard input (-); or --new makes one")
    private = client_auth.mint_pair().private if is_new else client_auth.parse_private(read_secret(key or ""), address)
    if folder is not None:
        where = f"in {client_auth.write_private(Path(folder), address, private)}; tor reads it when it is reloaded"
        permanent = True
    else:
        with reach(options) as tor:
            permanent = client_auth.add_key(tor, address, private)
        where = "in tor, for good" if permanent else "in tor, until it restarts (it has no ClientOnionAuthDir)"
    public = client_auth.public_line(client_auth.public_of(private))
    if options["as_json"]:
        ui.result_json({"address": address, "permanent": permanent, "public": public})
        return
    ui.say(f"the key for {address} is {where}")
    if is_new:
        ui.say("give the operator this line:")
        ui.result(public)


@command.command()
@click.argument("address")
@json_option
@tor_options
def remove(address: str, **options: Any) -> None:
    """Take the key for the box at ADDRESS out of your tor."""
    from bento_tor.cli.onion import reach
    from bento_tor.controller import client_auth

    address = _bare(address)
    with reach(options) as tor:
        had = client_auth.remove_key(tor, address)
    if not had:
        raise ConfigError(f"tor has no key for {address}", hint="'bento-tor client auth list' shows for which it has")
    if options["as_json"]:
        ui.result_json({"address": address, "removed": True})
    else:
        ui.result(f"tor has no key for {address} any more")


@command.command("list")
@json_option
@tor_options
def list_(**options: Any) -> None:
    """The boxes that your tor has keys for. Never a key."""
    from bento_tor.cli.onion import reach
    from bento_tor.controller import client_auth

    with reach(options) as tor:
        known = client_auth.known_keys(tor)
    if options["as_json"]:
        ui.result_json({"keys": [{"address": key.address, "permanent": key.permanent} for key in known]})
        return
    if not known:
        ui.say("tor has no keys for onion services")
    for key in known:
        ui.result(f"{key.address}  {'kept' if key.permanent else 'until tor restarts'}")


def _bare(address: str) -> str:
    """Without a port: a key is for the whole service."""
    return address.lower().partition(":")[0]
