"""`bento-tor network`: private Tor networks on this machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bento_tor.cli import ui
from bento_tor.cli.options import Seconds, json_option

if TYPE_CHECKING:
    from bento_tor.network import Network
    from bento_tor.network.watch import NodeStatus

F = TypeVar("F", bound=Callable[..., Any])

_BLOCK_BYTES = 64 * 1024


def default_directory() -> Path:
    """Where a network lives unless --dir says otherwise."""
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state else Path.home() / ".local" / "state"
    return base / "bento-tor" / "network"


def directory_option(command: F) -> F:
    """`--dir`: one directory, one network."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="BENTO_TOR_NETWORK",
        show_envvar=True,
        default=default_directory,
        show_default="~/.local/state/bento-tor/network",
        help="The directory of the network.",
    )(command)


@click.group()
def command() -> None:
    """Private Tor networks: real tor processes on this machine, under one directory."""


@command.command()
@directory_option
@click.option("--authorities", default=3, show_default=True, metavar="N", help="Directory authorities.")
@click.option("--relays", default=5, show_default=True, metavar="N", help="Relays, exits included.")
@click.option("--exits", default=2, show_default=True, metavar="N", help="How many of the relays are exits.")
@click.option("--clients", default=1, show_default=True, metavar="N", help="Clients with a SOCKS port.")
@click.option(
    "--voting-interval",
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="From consensus to consensus; 20 where onionbalance is to run.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up after this long without any progress.",
)
@json_option
def up(
    directory: Path,
    authorities: int,
    relays: int,
    exits: int,
    clients: int,
    voting_interval: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Bring up a network, and prove that it works.

    It is ready when all nodes are, with the full consensus, and something was fetched through an onion service. It
    then runs until 'bento-tor network down'.
    """
    from bento_tor import network

    settings = network.NetworkSettings(authorities, relays, exits, clients, voting_interval)
    with ui.progress(f"bringing up a Tor network in {directory}") as line:
        running = network.up(settings, directory, timeout_s=timeout_s, report=line.update)
    if as_json:
        ui.result_json(_network_json(running))
        return
    times = running.timings
    ui.result(f"{len(running.nodes)} tors are ready in {running.directory}")
    ui.result(f"  keys {times.keygen_s:.1f} s, first onion reply {times.first_reply_s:.1f} s,")
    ui.result(f"  everything ready {times.ready_s:.1f} s")
    ui.result(f"  SOCKS port {running.client.socks}")
    ui.result(f"  control port {running.client.control}")
    ui.result(f"end it with: bento-tor network down --dir {shlex.quote(str(running.directory))}")


@command.command()
@directory_option
@json_option
def status(directory: Path, as_json: bool) -> None:
    """Show each node: does it run, how far is it, how many relays does it know?"""
    from bento_tor import network

    nodes = network.status(directory)
    running = network.Network.load(directory)
    extras = [{"name": extra.name, "pid": extra.process.pid, "alive": extra.process.alive} for extra in running.extras]
    if as_json:
        shown = [_status_json(node) for node in nodes]
        ui.result_json({"dir": str(running.directory), "ready": running.ready, "nodes": shown, "extras": extras})
        return
    for node in nodes:
        relays = f"{node.consensus} relays known" if node.alive else ""
        where = ui.escape(node.bootstrap.words if node.alive else "not running")
        ui.result(f"{node.name:5} {node.role:10} {node.pid or '-':>7}  {where}  {relays}".rstrip())
    for extra in extras:
        word = "running" if extra["alive"] else "not running"
        ui.result(f"{extra['name']:5} {'':10} {extra['pid']:>7}  {word}")


@command.command()
@directory_option
@click.option("--keep-data", is_flag=True, help="End the processes, keep their directories.")
@json_option
def down(directory: Path, keep_data: bool, as_json: bool) -> None:
    """End a network, whoever started it, and remove what it left on the disk."""
    from bento_tor import network

    with ui.progress(f"ending the network in {directory}") as line:
        ended = network.down(directory, report=line.update, keep_data=keep_data)
    if as_json:
        shown = {"found": ended.found, "ended": ended.ended, "killed": ended.killed, "removed": ended.removed}
        ui.result_json({"dir": str(directory.absolute()), **shown})
    elif not ended.found:
        ui.result(f"there is no network in {directory}")
    else:
        killed = f" ({', '.join(ended.killed)} had to be killed)" if ended.killed else ""
        rest = f"{directory} is gone" if ended.removed else f"{directory} stays"
        ui.result(f"{ended.ended} processes ended{killed}; {rest}")


@command.command()
@click.argument("node", required=False)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="How many of the last lines.",
)
@directory_option
@json_option
def logs(node: str | None, lines: int, directory: Path, as_json: bool) -> None:
    """Show the end of the log of NODE, or of all nodes."""
    from bento_tor import network

    running = network.Network.load(directory)
    nodes = [running.node(node)] if node else list(running.nodes)
    tails = {one.name: _tail(one.log, lines) for one in nodes}
    if as_json:
        ui.result_json({"dir": str(running.directory), "logs": tails})
        return
    for name, tail in tails.items():
        if len(tails) > 1:
            ui.result(f"== {name}")
        for line in tail:
            ui.result(ui.escape(line))


@command.command()
@directory_option
@json_option
def env(directory: Path, as_json: bool) -> None:
    """Print what makes other commands use this network: eval "$(bento-tor network env)"."""
    from bento_tor import network

    running = network.Network.load(directory)
    values = {
        "BENTO_TOR_SOCKS": str(running.client.socks),
        "BENTO_TOR_CONTROL": str(running.client.control),
        "BENTO_TOR_NETWORK": str(running.directory),
    }
    if as_json:
        ui.result_json(values)
        return
    for name, value in values.items():
        ui.result(f"export {name}={shlex.quote(value)}")


def _network_json(running: Network) -> dict[str, Any]:
    times = running.timings
    return {
        "dir": str(running.directory),
        "socks": str(running.client.socks),
        "control": str(running.client.control),
        "nodes": [
            {
                "name": node.name,
                "role": node.role,
                "pid": process.pid if (process := running.maybe_process(node)) else 0,
                "control": str(node.control),
            }
            for node in running.nodes
        ],
        "timings": {
            "keygen_s": times.keygen_s,
            "first_reply_s": times.first_reply_s,
            "ready_s": times.ready_s,
        },
    }


def _status_json(node: NodeStatus) -> dict[str, Any]:
    return {
        "name": node.name,
        "role": node.role,
        "pid": node.pid,
        "alive": node.alive,
        "progress": node.bootstrap.progress,
        "tag": node.bootstrap.tag,
        "summary": node.bootstrap.summary,
        "consensus": node.consensus,
    }


def _tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _BLOCK_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-lines:]
