"""`bento-tor onion`: the operator's onion services, and a look at anybody's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.onion_auth import auth
from bento_tor.cli.options import json_option, tor_options
from bento_tor.errors import BentoError, ConfigError, ConnectError

if TYPE_CHECKING:
    from bento_tor.controller.descriptor import Contents
    from bento_tor.controller.services import Place, Service
    from bento_tor.controller.tor import Tor

F = TypeVar("F", bound=Callable[..., Any])


def state_option(command: F) -> F:
    """`--state`: the box's folder, where its onion services are written down too."""
    return click.option("--state", metavar="DIR", help="The box's state folder, where keys are kept.")(command)


def place_of(state: str | None) -> Place:
    """The services of that state folder, or of the default one."""
    from bento_tor.config import data_dir
    from bento_tor.controller.services import Place

    return Place(Path(state).absolute() if state else data_dir() / "box")


def reach(options: dict[str, Any]) -> Tor:
    """A control connection to the tor that the options name. Raises TorError."""
    from bento_tor.controller.connection import connect
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.network.network import Network

    timeout_s = min(options["timeout_s"], 10.0)
    if options["control"] is None and options["network_dir"] is not None:
        return connect(Network.load(Path(options["network_dir"])).client.control, timeout_s=timeout_s)
    return connect(Endpoint.parse(options["control"]) if options["control"] else None, timeout_s=timeout_s)


@click.group()
def command() -> None:
    """Your onion services: make them, see them, check them, say whom they let in.

    The box's own is called 'box': 'serve --publish' or 'setup-relay' put it up."""


command.add_command(auth)


@command.command()
@click.argument("name", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="The service's port.")
@click.option("--target", metavar="HOST:PORT|unix:PATH", help="Where it leads, as tor sees it.")
@click.option("--dir", "as_dir", is_flag=True, help="As a HiddenServiceDir of tor's, and show the lines for its torrc.")
@click.option("--offline", is_flag=True, help="Make the key and write it down; no tor is asked.")
@click.option("--ephemeral", is_flag=True, help="Until Ctrl-C, with a key that is kept nowhere.")
@click.option("--pow", "pow_rate", type=click.IntRange(0, 65535), metavar="RATE", default=0,
              help="Ask for proof of work where more clients come than RATE a second.")  # fmt: skip
@click.option("--max-streams", type=click.IntRange(0, 65535), default=0, help="Most connections by one circuit.")
@click.option("--single-hop", is_flag=True, help="Do not hide where it is: on a tor that hides nobody; with --dir.")
@state_option
@json_option
@tor_options
def create(name: str | None, **options: Any) -> None:
    """Make the onion service NAME and put it up: its key is minted here and kept, so that it always has one address.

    It lives as long as tor does. 'create NAME' puts it up again, as it was or with what is said anew; with --dir it
    shows the lines that make tor put it up at every start."""
    from bento_tor.controller import client_auth, onion, services
    from bento_tor.controller.services import Service

    if options["ephemeral"]:
        if name or options["offline"] or options["as_dir"] or options["single_hop"]:
            raise click.UsageError("--ephemeral takes no name, no --dir, no --single-hop and no --offline")
        _hold(Service("ephemeral", **_wanted(None, options)), options)
        return
    if name is None:
        raise click.UsageError("give it a NAME, or say --ephemeral")
    if services.check_name(name) == services.BOX:
        raise ConfigError("'box' is the box's own service", hint="'bento-tor serve --publish' puts it up")
    place = place_of(options["state"])
    service = Service(name, **_wanted(place.maybe_load(name), options))
    place.make()
    seed = onion.load_or_mint_seed(place.seed(name))
    place.store(service)
    if options["offline"]:
        _report_made(service, onion.onion_address(seed), f"<DataDirectory>/bento-onion-{name}", options, up=False)
        return
    access = client_auth.load_access(place.access(name))
    with reach(options) as tor, ui.progress("putting the onion service up") as line:
        services.put_up(tor, service, seed, access, timeout_s=options["timeout_s"], report=line.update)
        service = msgspec.structs.replace(service, control=str(tor.endpoint))
        place.store(service)
        folder = str(services.service_dir(tor, name))
    _report_made(service, onion.onion_address(seed), folder, options, up=True)


def _wanted(maybe_before: Service | None, options: dict[str, Any]) -> dict[str, Any]:
    """What is said, over what was written down."""
    from bento_tor.controller import services

    before = msgspec.structs.asdict(maybe_before) if maybe_before else {}
    said = {key: options[key] for key in ("target", "pow_rate", "max_streams", "single_hop") if options[key]}
    source = click.get_current_context().get_parameter_source("port")
    if not before or source is not click.core.ParameterSource.DEFAULT:
        said["port"] = options["port"]
    if options["as_dir"] or options["single_hop"]:
        said["kind"] = "dir"
    wanted = {**before, **said}
    wanted.pop("name", None)
    if "target" not in wanted:
        raise click.UsageError("where shall it lead? --target HOST:PORT or --target unix:PATH")
    services.check_target(wanted["target"])
    return wanted


def _hold(service: Service, options: dict[str, Any]) -> None:
    """Keep a service up until somebody ends us; it goes with our control connection."""
    from bento_tor.controller import onion

    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with reach(options) as tor:
        seed = onion.mint_seed()
        with ui.progress("putting the onion service up") as line:
            address = onion.publish(
                tor, seed, service.port, service.target,
                timeout_s=options["timeout_s"], report=line.update, defences=service.defences,
            )  # fmt: skip
        _report_made(service, address, "", options, up=True)
        while not done.wait(0.5):
            if not tor.alive:
                raise BentoError("tor has gone, and the service with it")


def _report_made(service: Service, address: str, folder: str, options: dict[str, Any], *, up: bool) -> None:
    from bento_tor.controller import services

    lines = [f"{key} {value}" for key, value in services.torrc_lines(service, folder)] if folder else []
    if options["as_json"]:
        ui.result_json({"address": address, "up": up, "torrc": lines, **msgspec.to_builtins(service)})
        return
    ui.result(f"{address}, port {service.port}, leads to {service.target}{'' if up else ': not put up'}")
    if service.kind == "dir":
        ui.say("for every start of that tor these lines belong into its torrc:")
        for text in lines:
            ui.result(f"  {text}")


@command.command("list")
@state_option
@json_option
@tor_options
def list_(**options: Any) -> None:
    """Your onion services: those that are written down, and those that tor has."""
    from bento_tor.controller import services
    from bento_tor.errors import TorError

    place = place_of(options["state"])
    known = [services.BOX] if place.seed(services.BOX).exists() else []
    rows = [_row(place, name) for name in [*known, *place.names()]]
    try:
        with reach(options) as tor:
            for row in rows:
                row["up"] = bool(services.own_descriptor(tor, row["address"]))
            names = {row["address"] for row in rows}
            rows += [_foreign(address, "detached") for address in services.detached(tor) if address not in names]
            ours = {str(services.service_dir(tor, name)) for name in [*known, *place.names()]}
            rows += [_foreign(folder, "dir") for folder in services.dirs(tor) if folder not in ours]
    except TorError as why:
        ui.warn(f"what is up cannot be told: {why.message}")
    if options["as_json"]:
        ui.result_json({"services": rows})
        return
    if not rows:
        ui.say("there are no onion services: 'bento-tor onion create' makes one")
    for row in rows:
        state = {True: "up", False: "not up", None: "?"}[row["up"]]
        locked = f", for {row['clients']} clients only" if row["locked"] else ""
        ui.result(f"{row['name']:<16} {row['address']}  {state}{locked}")


def _row(place: Place, name: str) -> dict[str, Any]:
    from bento_tor.controller import client_auth

    access, service = client_auth.load_access(place.access(name)), place.maybe_load(name)
    return {
        "name": name,
        "address": place.address(name),
        "up": None,
        "locked": access.locked,
        "clients": len(access.clients),
        **({"port": service.port, "target": service.target, "kind": service.kind} if service else {"kind": "box"}),
    }


def _foreign(address: str, kind: str) -> dict[str, Any]:
    """One that tor has and nobody wrote down here."""
    return {"name": "-", "address": address, "up": True, "locked": None, "clients": 0, "kind": kind}


@command.command()
@click.argument("name")
@state_option
@json_option
@tor_options
def show(name: str, **options: Any) -> None:
    """All about one of your services: where it leads, whom it lets in, what its descriptor offers."""
    from bento_tor.controller import client_auth, descriptor, onion, services

    place = place_of(options["state"])
    row = _row(place, name) if name == services.BOX else _row(place, place.load(name).name)
    row["client_names"] = [client.name for client in client_auth.load_access(place.access(name)).clients]
    with reach(options) as tor:
        text = services.own_descriptor(tor, row["address"])
        row |= {"up": bool(text), "single_hop": bool(text) and onion.is_single_hop(tor)}
    maybe_contents = descriptor.maybe_open(text, row["address"]) if text else None
    row["descriptor"] = _descriptor_row(text, maybe_contents)
    if options["as_json"]:
        ui.result_json(row)
        return
    ui.result(f"{name}  {row['address']}  {'up' if row['up'] else 'not up on this tor'}")
    if "target" in row:
        ui.result(f"  port {row['port']} leads to {row['target']}")
    clients = ", ".join(row["client_names"]) or "nobody"
    ui.result(f"  lets in {clients if row['locked'] else 'everybody'}")
    if row["single_hop"]:
        ui.result("  single hop: it does not hide where it is")
    for said in _descriptor_words(text, maybe_contents):
        ui.result(f"  {said}")


def _descriptor_row(text: str, maybe_contents: Contents | None) -> dict[str, Any] | None:
    if not text:
        return None
    if maybe_contents is None:
        return {"readable": False}
    return {
        "readable": True,
        "intro_points": maybe_contents.intro_points,
        "single_hop": maybe_contents.single_hop,
        "pow_effort": maybe_contents.pow_effort,
        "pow_until": maybe_contents.pow_until or None,
    }


def _descriptor_words(text: str, maybe_contents: Contents | None) -> list[str]:
    if not text:
        return []
    if maybe_contents is None:
        return ["its descriptor can be read with a client's key only"]
    words = [f"its descriptor names {maybe_contents.intro_points} introduction points"]
    if maybe_contents.single_hop:
        words.append("it says that it does not hide where it is")
    if maybe_contents.pow_effort is not None:
        words.append(
            f"proof of work: suggested effort {maybe_contents.pow_effort}, parameters until {maybe_contents.pow_until}"
        )
    else:
        words.append("no proof of work")
    return words


@command.command()
@click.argument("name")
@click.option("--forget-key", is_flag=True, help="Erase its key too: nobody will ever have its address again.")
@state_option
@json_option
@tor_options
def remove(name: str, forget_key: bool, **options: Any) -> None:
    """Take a service down. Its key is kept, so that 'create' gives it the same address, unless --forget-key."""
    from bento_tor.controller import services

    place = place_of(options["state"])
    service, address = place.load(name), place.address(name)
    with reach(options) as tor:
        was_up = services.take_down(tor, service, address)
    place.forget(name, key_too=forget_key)
    if options["as_json"]:
        ui.result_json({"name": name, "address": address, "was_up": was_up, "key_kept": not forget_key})
    else:
        ui.result(f"{name} is {'down' if was_up else 'forgotten; that tor did not have it'}")


@command.command()
@click.argument("name", metavar="NAME|ADDRESS")
@click.option("--port", type=click.IntRange(1, 65535), help="Which port.  [default: the service's, or 80]")
@click.option("--key", "key_file", metavar="FILE", help="A client's key, to read its descriptor with.")
@state_option
@json_option
@tor_options
def check(name: str, port: int | None, key_file: str | None, **options: Any) -> None:
    """Can it be reached? Fetches the descriptor, reads it, and makes a real connection; says what failed."""
    from bento_tor.controller import services

    place = place_of(options["state"])
    address = name.lower() if name.endswith(".onion") else place.address(name)
    if port is None:
        maybe_service = None if name.endswith(".onion") or name == services.BOX else place.load(name)
        port = maybe_service.port if maybe_service else 80
    text, maybe_contents = _fetch(address, key_file, options)
    try:
        connected_s = _connect(address, port, options)
    except ConnectError as why:
        hint = f"{why.hint}; its descriptor is there, so its tor was not long ago: look at what it leads to"
        raise ConnectError(why.message, hint=hint) from why
    if options["as_json"]:
        row = _descriptor_row(text, maybe_contents)
        ui.result_json({"address": address, "port": port, "descriptor": row, "connected_s": round(connected_s, 3)})
        return
    for said in _descriptor_words(text, maybe_contents):
        ui.result(said)
    ui.result(f"connected to {address}, port {port}, in {connected_s:.1f} seconds")


def _fetch(address: str, key_file: str | None, options: dict[str, Any]) -> tuple[str, Contents | None]:
    """The descriptor, and what is in it. Raises ConnectError where the directories have none."""
    from bento_tor.controller import client_auth, descriptor, services
    from bento_tor.controller.onion import is_onion_address

    if not is_onion_address(address):
        raise ConfigError(f"{address} is not an onion address", hint="one letter is mistyped")
    private = client_auth.parse_private(_read(key_file), address) if key_file else None
    with reach(options) as tor, ui.progress("fetching its descriptor"):
        fetched = services.fetch(tor, address, timeout_s=options["timeout_s"])
    if not fetched.text:
        if not fetched.asked:
            hint = "it asks a directory once in 15 minutes: try later" if fetched.reason else "has it bootstrapped?"
            raise ConnectError(f"tor asked no directory for {address}", hint=hint)
        raise ConnectError(
            f"{address} is not published: {fetched.asked} directories were asked, and none has its descriptor"
            f"{f' ({fetched.reason})' if fetched.reason else ''}",
            hint="is its tor running, and the service up? 'onion list' on that machine",
        )
    maybe_contents = descriptor.maybe_open(fetched.text, address, private)
    if maybe_contents is None and key_file:
        raise ConnectError(f"{address} does not know this key", hint="it may have been revoked: ask its operator")
    return fetched.text, maybe_contents


def _connect(address: str, port: int, options: dict[str, Any]) -> float:
    """A real connection. Returns the seconds it took; raises ConnectError that says what failed."""
    import secrets
    import time

    from bento_tor.client.route import DEFAULT_SOCKS, BoxAddress, TorTransport
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.network.network import Network

    if options["socks"] is not None or options["network_dir"] is None:
        socks = Endpoint.parse(options["socks"] or DEFAULT_SOCKS)
    else:
        socks = Network.load(Path(options["network_dir"])).client.socks
    began = time.monotonic()
    box = BoxAddress("onion", address, port)
    with ui.progress("connecting to it"):
        transport = TorTransport(box, socks, isolation=secrets.token_hex(8), timeout_s=options["timeout_s"])
        stream = transport.open()
        try:
            stream.send(b"")
            stream.hear()
        finally:
            stream.close()
    return time.monotonic() - began


def _read(path: str) -> str:
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            return file.readline(4096)
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}") from why
