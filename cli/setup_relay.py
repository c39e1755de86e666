"""`bento-tor setup-relay`: prepare a running tor for a box."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option, tor_options
from bento_tor.errors import ConfigError

if TYPE_CHECKING:
    from bento_tor.controller.relay import Change
    from bento_tor.controller.tor import Tor


@click.command()
@click.option("--state", metavar="DIR", help="The box's state folder; its socket is where the onion service leads.")
@click.option("--node", metavar="NAME", help="With --network: which of its tors.  [default: the first relay]")
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="The onion service's port.")
@click.option("--exit-port", type=click.IntRange(1, 65535), help="Also accept exits to the box, at 192.0.2.80:PORT.")
@click.option("--dry-run", is_flag=True, help="Show the change, and change nothing.")
@click.option("--undo", is_flag=True, help="Put back what was there before.")
@json_option
@tor_options
def command(
    state: str | None,
    node: str | None,
    port: int,
    exit_port: int | None,
    dry_run: bool,
    undo: bool,
    as_json: bool,
    socks: str | None,
    control: str | None,
    network_dir: str | None,
    timeout_s: float,
) -> None:
    """Give a running tor what a box needs: an onion service that leads to the box's socket and, with --exit-port, an
    exit policy that opens exactly the box's virtual address.

    It lasts until that tor restarts or reads its torrc again. Running it twice changes nothing."""
    from bento_tor.config import data_dir

    del socks  # setting up needs no client; the option is the same everywhere
    place = Path(state).absolute() if state else data_dir() / "box"
    with _connect(control, network_dir, node, timeout_s) as tor:
        if undo:
            _undo(tor, place, dry_run=dry_run, as_json=as_json)
        else:
            _set_up(tor, place, port, exit_port, dry_run=dry_run, as_json=as_json, timeout_s=timeout_s)


def _connect(control: str | None, network_dir: str | None, node: str | None, timeout_s: float) -> Tor:
    from bento_tor.controller.connection import connect
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.network.network import Network

    if control is not None:
        endpoint = Endpoint.parse(control)
    elif network_dir is not None:
        network = Network.load(Path(network_dir))
        endpoint = (network.node(node) if node else network.relays[0]).control
    else:
        return connect(None, timeout_s=min(timeout_s, 10.0))
    return connect(endpoint, timeout_s=min(timeout_s, 10.0))


def _set_up(
    tor: Tor, state: Path, port: int, exit_port: int | None, *, dry_run: bool, as_json: bool, timeout_s: float
) -> None:
    from bento_tor.controller import address, relay
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.controller.onion import load_or_mint_seed
    from bento_tor.server.state import maybe_relay, onion_seed, write_relay

    found = relay.read_settings(tor)
    earlier = maybe_relay(state)
    if exit_port is None and earlier is not None:
        exit_port = earlier.wanted.exit_port  # it stays until --undo, which must know of it
    wanted = relay.Wanted(str(Endpoint.unix(state / "box.sock")), port, exit_port)
    change = relay.plan(found, wanted)
    if change.empty and earlier is not None:
        _report(change, as_json=as_json, address=earlier.address, done="nothing to do", port=port, exit_port=exit_port)
        return
    if dry_run:
        _report(change, as_json=as_json, address="", done="this would change", port=port, exit_port=exit_port)
        return
    added_address = exit_port is not None and address.add_to_lo(relay.VIRTUAL_ADDRESS)
    # What was there before the first set-up is what --undo puts back, however often this runs.
    before = earlier.before if earlier is not None else found
    added_address = added_address or (earlier is not None and earlier.added_address)
    relay.place_key(found, load_or_mint_seed(onion_seed(state)))
    relay.apply(tor, change)
    try:
        record = relay.SetUp(
            relay.service_address(found), port, str(tor.endpoint), wanted, before, added_address=added_address
        )
        write_relay(state, record)
        with ui.progress("waiting until tor confirms it"):
            relay.confirm(tor, record.address, wanted, timeout_s=timeout_s)
    except BaseException:
        ui.say("that failed: putting back what was there")
        _put_back(tor, state, before, wanted, added_address=added_address)
        raise
    _report(change, as_json=as_json, address=record.address, done="set up", port=port, exit_port=exit_port)


def _undo(tor: Tor, state: Path, *, dry_run: bool, as_json: bool) -> None:
    from bento_tor.controller import relay
    from bento_tor.server.state import maybe_relay

    record = maybe_relay(state)
    if record is None:
        raise ConfigError(f"there is nothing to undo: {state} has no record of a set-up", hint="name its --state")
    change = relay.plan_undo(relay.read_settings(tor), record.before, record.wanted)
    if not dry_run:
        _put_back(tor, state, record.before, record.wanted, added_address=record.added_address)
    done = "this would change" if dry_run else "undone"
    _report(change, as_json=as_json, address=record.address, done=done, port=record.port, exit_port=None)
    if not dry_run:
        ui.say(f"the service's key is kept in tor's data directory ({relay.SERVICE_DIR}): the same address next time")


def _put_back(tor: Tor, state: Path, before: object, wanted: object, *, added_address: bool) -> None:
    from bento_tor.controller import address, relay
    from bento_tor.server.state import remove_relay

    if not (isinstance(before, relay.Found) and isinstance(wanted, relay.Wanted)):
        raise ConfigError("the record of the set-up cannot be used")
    relay.apply(tor, relay.plan_undo(relay.read_settings(tor), before, wanted))
    remove_relay(state)
    if added_address:
        address.remove_from_lo(relay.VIRTUAL_ADDRESS)


def _report(change: Change, *, as_json: bool, address: str, done: str, port: int, exit_port: int | None) -> None:
    if as_json:
        ui.result_json(
            {
                "done": done,
                "address": address,
                "port": port,
                "exit": f"192.0.2.80:{exit_port}" if exit_port else None,
                "removed": list(change.removed),
                "added": list(change.added),
            }
        )
        return
    ui.say(f"{done}:" if not change.empty else done)
    for line in change.removed:
        ui.result(f"- {line}")
    for line in change.added:
        ui.result(f"+ {line}")
    if address and done != "undone":
        ui.result(f"onion  {address}, port {port}")
        if exit_port:
            ui.result(f"exit   192.0.2.80:{exit_port}")
