"""`bento-tor onion auth`: whom an onion service lets in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option, tor_options
from bento_tor.errors import ConfigError, TorError, TorTimeout

if TYPE_CHECKING:
    from bento_tor.controller.client_auth import Access
    from bento_tor.controller.services import Place

state_option = click.option("--state", metavar="DIR", help="The box's state folder, where keys are kept.")


@click.group()
def auth() -> None:
    """Whom a service lets in: with the first client's key it lets in nobody else.

    SERVICE is a name that 'onion list' shows; the box's own is 'box'."""


@auth.command()
@click.argument("service")
@click.argument("client")
@click.option("--public", metavar="KEY", help="The client's own public key, descriptor:x25519:...; he keeps the other.")
@click.option("-o", "--out", metavar="FILE", help="Write the new private key there, and not to standard output.")
@state_option
@json_option
@tor_options
def add(service: str, client: str, public: str | None, out: str | None, **options: Any) -> None:
    """Let CLIENT in. Without --public a key is made here; its private half is shown once and kept nowhere."""
    from bento_tor.controller import client_auth

    place = _place(options["state"])
    address = _address(place, service)
    if public is not None and out is not None:
        raise click.UsageError("with --public there is no private key to write: leave --out out")
    maybe_pair = None if public is not None else client_auth.mint_pair()
    key = maybe_pair.public if maybe_pair is not None else client_auth.parse_public(public or "")
    access = client_auth.load_access(place.access(service)).adding(client, key)
    secret = client_auth.private_line(address, maybe_pair.private) if maybe_pair is not None else ""
    if out is not None:
        _write_secret(Path(out), secret)
    applied = _settle(place, service, access, options)
    if options["as_json"]:
        facts = {"service": service, "client": client, "address": address, "applied": applied}
        ui.result_json({**facts, "private": secret if secret and out is None else None, "file": out})
        return
    ui.say(f"{service} lets {client} in{'' if applied else ' when it is put up again'}, and nobody without a key")
    if secret and out is None:
        ui.say("give him this line; it is not kept here:")
        ui.result(secret)


@auth.command("list")
@click.argument("service")
@state_option
@json_option
def list_(service: str, state: str | None, as_json: bool) -> None:
    """Whom a service lets in."""
    from bento_tor.controller import client_auth

    place = _place(state)
    _address(place, service)
    access = client_auth.load_access(place.access(service))
    if as_json:
        clients = [{"name": client.name, "public": client.public} for client in access.clients]
        ui.result_json({"service": service, "locked": access.locked, "clients": clients})
        return
    if not access.clients:
        ui.say(f"{service} lets {'nobody' if access.locked else 'everybody'} in")
    for client in access.clients:
        ui.result(f"{client.name:<20} descriptor:x25519:{client.public}")


@auth.command()
@click.argument("service")
@click.argument("client", required=False)
@click.option("--open", "is_open", is_flag=True, help="Ask nobody for a key any more: the service is open to all.")
@state_option
@json_option
@tor_options
def revoke(service: str, client: str | None, is_open: bool, **options: Any) -> None:
    """Let CLIENT in no more. The last one's going does not open the service: --open does.

    Who is connected stays so until he hangs up."""
    from bento_tor.controller import client_auth

    if is_open == (client is not None):
        raise click.UsageError("name a CLIENT, or say --open")
    place = _place(options["state"])
    _address(place, service)
    access = client_auth.load_access(place.access(service))
    left = client_auth.Access() if is_open else access.removing(client or "")
    applied = _settle(place, service, left, options)
    if options["as_json"]:
        facts = {"service": service, "client": client, "locked": left.locked, "applied": applied}
        ui.result_json({**facts, "clients": [kept.name for kept in left.clients]})
        return
    who = "everybody" if not left.locked else ", ".join(kept.name for kept in left.clients) or "nobody"
    ui.result(f"{service} lets {who} in{'' if applied else ' when it is put up again'}")


def _place(state: str | None) -> Place:
    from bento_tor.config import data_dir
    from bento_tor.controller.services import Place

    return Place(Path(state).absolute() if state else data_dir() / "box")


def _address(place: Place, service: str) -> str:
    """The service's; the box's own may have one that tor had before. Raises ConfigError where it has no key."""
    from bento_tor.controller import services
    from bento_tor.server.state import maybe_relay

    record = maybe_relay(place.state) if service == services.BOX else None
    return record.address if record is not None else place.address(service)


def _settle(place: Place, service: str, access: Access, options: dict[str, Any]) -> bool:
    """Write it down, and make it so. Whether it holds already."""
    from bento_tor.cli.onion import reach
    from bento_tor.controller import client_auth, onion, services
    from bento_tor.server.state import is_in_use, maybe_relay

    place.make()
    client_auth.store_access(place.access(service), access)
    record, known = maybe_relay(place.state), place.maybe_load(service)
    if service == services.BOX and record is None:
        # A box that publishes itself sees the file change.
        return is_in_use(place.state)
    # The tor that has it, and not the one that is found first: there a revoked key would still open it.
    control = record.control if service == services.BOX and record else known.control if known else ""
    if options["control"] is None and options["network_dir"] is None and control:
        options = {**options, "control": control}
    try:
        with reach(options) as tor, ui.progress("telling tor"):
            if service == services.BOX:
                folder, address = services.service_dir(tor, service), _address(place, service)
                return services.let_in(tor, folder, address, access, timeout_s=options["timeout_s"])
            known = place.load(service)
            if not services.is_up(tor, known, place.address(service)):
                return False
            seed = onion.load_seed(place.seed(service))
            services.put_up(tor, known, seed, access, timeout_s=options["timeout_s"])
    except TorTimeout as why:
        down = known is not None and known.kind == "detached"
        state = "the service is down now: put it up again" if down else "tor was told, but it may not hold yet"
        ui.warn(f"it is written down; {state} ({why.message})")
        return False
    except TorError as why:
        ui.warn(f"it is written down, but tor was not told: {why.message}")
        return False
    return True


def _write_secret(path: Path, line: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(line + "\n")
    except OSError as why:
        raise ConfigError(f"cannot write {path}: {why.strerror}", hint="name a file that is not there yet") from why


def read_secret(text: str) -> str:
    """A key's line from @FILE, or from standard input for `-`. Never from the command line, where `ps` shows it."""
    if text == "-":
        return sys.stdin.readline(4096)
    if not text.startswith("@"):
        raise ConfigError("a key is a secret, and the command line is not", hint="put it into a file: @FILE, or -")
    try:
        with Path(text[1:]).open(encoding="ascii", errors="replace") as file:
            return file.readline(4096)
    except OSError as why:
        raise ConfigError(f"cannot read {text[1:]}: {why.strerror}") from why
