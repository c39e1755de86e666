"""The life of a private network: up, status, down.

`up` either returns a network that works or leaves nothing behind, whatever ends it. `down` needs nothing but
the directory. How a start goes is in `start`.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bento_tor.controller.launch import STOP_PATIENCE_S
from bento_tor.controller.processes import end, find_by_arguments
from bento_tor.errors import ConfigError
from bento_tor.network import state as states
from bento_tor.network.interrupts import one_interrupt
from bento_tor.network.network import Network
from bento_tor.network.plan import NetworkSettings, plan_nodes, ports_needed
from bento_tor.network.ports import allocate_ports
from bento_tor.network.start import BANDWIDTHS_FILE, DEFAULTS_FILE, PROBE_FILE, Start
from bento_tor.network.state import State
from bento_tor.network.watch import NodeStatus, node_status

# Without progress of any node for so long, it is not going to come.
DEFAULT_TIMEOUT_S = 60.0
# What a node's directory holds after a day: descriptors, consensus diffs, its log.
_NODE_DISK_BYTES = 12 * 1024 * 1024

Report = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """What `down` did. `found`: there was a network. `killed`: who did not end when asked. `removed`: DIR is
    gone."""

    found: bool
    ended: int = 0
    killed: tuple[str, ...] = ()
    removed: bool = False


def up(
    settings: NetworkSettings,
    directory: Path,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    report: Report | None = None,
    owner_pid: int = 0,
) -> Network:
    """Bring up a network in `directory` (empty or not there yet) and prove that it works.

    Ready means: full consensus, every node at 100 %, and one real fetch through an onion service. `timeout_s`
    is the longest wait without any progress, in seconds. With `owner_pid` the tors end by themselves soon
    after that process has (their files stay). Raises ConfigError, TorError, TorTimeout, ConnectError,
    KeyboardInterrupt; in each case nothing is left running and nothing is left in `directory`."""
    begun = time.monotonic()
    place = directory.absolute()
    report = report or _say_nothing
    with one_interrupt(), _system_errors(place):
        nodes = plan_nodes(settings, place, allocate_ports(ports_needed(settings)))
        created: list[Path] = []
        claimed = False
        try:
            _make_directory(place, created)
            _check_room(place, len(nodes))
            states.claim(place, State(settings, nodes, created=tuple(created)))
            claimed = True
            return Start(place, begun, timeout_s, report, owner_pid=owner_pid).run()
        except BaseException:
            report("ending what was started")
            if claimed:
                down(place)
            _remove_directories(created)
            raise


def down(directory: Path, *, report: Report | None = None, keep_data: bool = False) -> Ended:
    """End every process of the network in `directory`, and remove what `up` made (not with `keep_data`).

    Asks, waits, then kills, by pid and start time. Needs nothing from whoever started it; may be called
    again. Raises TorError where a process does not end, ConfigError where the state cannot be read."""
    place = directory.absolute()
    with one_interrupt(), _system_errors(place):
        state = states.maybe_load(place)
        if state is None:
            return Ended(found=False)
        if report is not None:
            report("ending the network")
        ended, killed = _end_processes(state)
        if keep_data:
            states.save(place, msgspec.structs.replace(state, processes={}, extras=(), ready=False))
            return Ended(True, ended, killed)
        _remove_data(place, state)
        return Ended(True, ended, killed, removed=not place.exists())


def status(directory: Path) -> tuple[NodeStatus, ...]:
    """Each node as it is now. Raises ConfigError where there is no network."""
    state = states.load(directory.absolute())
    found: list[NodeStatus] = []
    for node in state.nodes:
        process = state.processes.get(node.name)
        found.append(node_status(node, process.pid if process else 0, process is not None and process.alive))
    return tuple(found)


def _make_directory(place: Path, created: list[Path]) -> None:
    """Make the directory and its parents, and note which were made. Raises ConfigError for one in use,
    OSError."""
    for path in reversed([place, *place.parents]):
        if not path.exists():
            path.mkdir(mode=0o700)
            created.append(path)
    if states.maybe_load(place) is not None:
        hint = f"bento-tor network down --dir {place}"
        raise ConfigError(f"there is a network in {place} already", hint=hint)
    if any(place.iterdir()):
        raise ConfigError(f"the directory {place} is not empty", hint="name a new one with --dir")


def _check_room(place: Path, nodes: int) -> None:
    free, wanted = shutil.disk_usage(place).free, nodes * _NODE_DISK_BYTES
    if free < wanted:
        mib = 1024 * 1024
        sizes = f"{free // mib} MiB free; {nodes} nodes need about {wanted // mib} MiB"
        raise ConfigError(f"the disk of {place} has only {sizes}", hint="free some space, or name another --dir")


def _end_processes(state: State) -> tuple[int, tuple[str, ...]]:
    """End what belongs to the network, the tors last. Returns how many ended, and the names of those
    killed."""
    extras = {extra.process: extra.name for extra in state.extras}
    # A tor whose starter was killed before it could write down its pid: known by its torrc, which is ours
    # alone.
    strays = {found: node.name for node in state.nodes for found in find_by_arguments(str(node.torrc))}
    tors = strays | {process: name for name, process in state.processes.items() if process.alive}
    alive = [process for process in extras if process.alive]
    killed = end(alive, ask=signal.SIGTERM, patience_s=STOP_PATIENCE_S)
    killed += end(tors, ask=signal.SIGINT, patience_s=STOP_PATIENCE_S)
    names = extras | tors
    return len(alive) + len(tors), tuple(names[process] for process in killed)


def _remove_data(place: Path, state: State) -> None:
    """Remove what a network makes, and nothing else: a file that somebody put beside it stays, with its
    directory."""
    for directory in [node.directory for node in state.nodes] + [e.directory for e in state.extras if e.directory]:
        if place in directory.parents and not directory.is_symlink() and directory.exists():
            shutil.rmtree(directory)
    for name in (BANDWIDTHS_FILE, DEFAULTS_FILE, PROBE_FILE):
        (place / name).unlink(missing_ok=True)
    states.remove(place)
    _remove_directories(state.created)


def _remove_directories(created: tuple[Path, ...] | list[Path]) -> None:
    for path in reversed(created):
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError as why:
            if why.errno != errno.ENOTEMPTY:
                raise
            return


@contextlib.contextmanager
def _system_errors(place: Path) -> Iterator[None]:
    """The system's refusals, in words."""
    try:
        yield
    except OSError as why:
        where = why.filename or place
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or name another --dir"
            raise ConfigError(f"the disk is full: {where} could not be written", hint=hint) from why
        hint = "name another directory with --dir"
        raise ConfigError(f"{where} cannot be used: {why.strerror or why}", hint=hint) from why


def _say_nothing(text: str) -> None:
    """Nobody wants to know."""
