"""Pure: settings -> the nodes of a network. Refuses in words what tor would refuse in riddles, or what cannot
work.

No clock, file or port is touched: ports and the voting offset come in as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bento_tor.controller.endpoints import MAX_SOCKET_PATH_BYTES, Endpoint
from bento_tor.errors import ConfigError

MAX_NODES = 100
# Circuits of an onion service have up to four hops; tor extends to no relay twice in a row, and back to none.
# Authorities can be hops, but tor gives them next to no weight.
MIN_SERVERS = 5
MIN_RELAYS = 3
# tor's own minima (dirauth_config.c): initial interval 5 s, interval 10 s, each delay 2 s, vote + dist <
# interval/2. With these initial values tor votes 2 s before the consensus: 4 s after the start, when all
# relays have published, also on a busy machine. With 5 s it is seldom sooner done, and more often incomplete.
INITIAL_INTERVAL_S = 6
MIN_INTERVAL_S = 10
MIN_DELAY_S = 2
_DAY_S = 24 * 3600
_STEP_S = 5


class Role(StrEnum):
    """What a node is for. Authorities carry traffic as relays do."""

    AUTHORITY = "authority"
    RELAY = "relay"
    EXIT = "exit"
    CLIENT = "client"


@dataclass(frozen=True)
class NetworkSettings:
    """How many of what. `exits` are some of the relays. `voting_interval_s`: seconds from consensus to
    consensus."""

    authorities: int = 3
    relays: int = 5
    exits: int = 2
    clients: int = 1
    voting_interval_s: int = MIN_INTERVAL_S

    def check(self) -> None:
        """Raises ConfigError for a network that tor would not start, or in which no onion service works."""
        problem = _problem(self)
        if problem is not None:
            raise ConfigError(problem[0], hint=problem[1])


@dataclass(frozen=True)
class Schedule:
    """When authorities vote, in seconds."""

    interval_s: int
    delay_s: int
    offset_s: int
    initial_interval_s: int = INITIAL_INTERVAL_S
    initial_delay_s: int = MIN_DELAY_S


@dataclass(frozen=True)
class Node:
    """One tor of the network. A port is 0 where this role has none; all are on 127.0.0.1."""

    name: str
    role: Role
    directory: Path
    or_port: int = 0
    dir_port: int = 0
    socks_port: int = 0

    @property
    def torrc(self) -> Path:
        """Its configuration."""
        return self.directory / "torrc"

    @property
    def log(self) -> Path:
        """All that it prints."""
        return self.directory / "tor.log"

    @property
    def control(self) -> Endpoint:
        """Its control port."""
        return Endpoint.unix(self.directory / "control")

    @property
    def socks(self) -> Endpoint:
        """Its SOCKS port. Raises ConfigError where it is no client."""
        if self.role is not Role.CLIENT:
            raise ConfigError(f"{self.name} is no client: it has no SOCKS port")
        return Endpoint.tcp("127.0.0.1", self.socks_port)


def ports_needed(settings: NetworkSettings) -> int:
    """How many TCP ports such a network takes."""
    return 2 * settings.authorities + settings.relays + settings.clients


def plan_nodes(settings: NetworkSettings, directory: Path, ports: Sequence[int]) -> tuple[Node, ...]:
    """The nodes, authorities first, clients last. Raises ConfigError for impossible settings or places."""
    settings.check()
    check_place(directory)
    free = iter(ports)
    nodes: list[Node] = []
    for number in range(1, settings.authorities + 1):
        name = f"a{number}"
        nodes.append(Node(name, Role.AUTHORITY, directory / name, or_port=next(free), dir_port=next(free)))
    for number in range(1, settings.relays + 1):
        role = Role.EXIT if number > settings.relays - settings.exits else Role.RELAY
        nodes.append(Node(f"r{number}", role, directory / f"r{number}", or_port=next(free)))
    for number in range(1, settings.clients + 1):
        nodes.append(Node(f"c{number}", Role.CLIENT, directory / f"c{number}", socks_port=next(free)))
    return tuple(nodes)


def plan_schedule(settings: NetworkSettings, start_s: float) -> Schedule:
    """The voting schedule for authorities that start at `start_s`, in seconds since the epoch.

    Consensuses become valid on multiples of the interval, plus the offset. One would fall on the very second
    of the start, which is too early to vote for: the first real one is a whole initial interval later.
    Without this, a start late in an interval is followed by a vote at once, for a network of which no relay
    has published yet."""
    delay_s = MIN_DELAY_S if settings.voting_interval_s < 20 else 2 * MIN_DELAY_S
    return Schedule(settings.voting_interval_s, delay_s, int(start_s) % INITIAL_INTERVAL_S)


def check_place(directory: Path) -> None:
    """Raises ConfigError where tor cannot live in that directory: an odd name, or a path too long for a
    socket."""
    if any(char in str(directory) for char in '"\\') or not str(directory).isprintable():
        raise ConfigError(f"tor cannot use the directory {str(directory)!r}", hint="choose a plain name")
    longest = directory / f"r{MAX_NODES}" / "control"
    if len(bytes(longest)) > MAX_SOCKET_PATH_BYTES:
        over = len(bytes(longest)) - MAX_SOCKET_PATH_BYTES
        raise ConfigError(
            f"the path {directory} is {over} bytes too long: it holds unix sockets, whose paths have a limit",
            hint="choose a directory with a shorter path",
        )


def _problem(wanted: NetworkSettings) -> tuple[str, str] | None:
    """What is wrong, and what to do about it."""
    if wanted.authorities < 1 or wanted.clients < 1 or wanted.exits < 0:
        return "a network needs at least one authority and one client", "see 'bento-tor network up --help'"
    if wanted.exits > wanted.relays:
        return f"{wanted.exits} exits are more than {wanted.relays} relays", "exits are some of the relays"
    servers = wanted.authorities + wanted.relays
    if wanted.relays < MIN_RELAYS or servers < MIN_SERVERS:
        needs = f"at least {MIN_SERVERS} authorities and relays together, {MIN_RELAYS} of them relays"
        return f"onion services need {needs}", "take more relays"
    if servers + wanted.clients > MAX_NODES:
        return f"{servers + wanted.clients} nodes are more than {MAX_NODES}", "take fewer"
    return _interval_problem(wanted.voting_interval_s)


def _interval_problem(interval_s: int) -> tuple[str, str] | None:
    if interval_s < MIN_INTERVAL_S or _DAY_S % interval_s:
        why = f"tor wants at least {MIN_INTERVAL_S} s and a divisor of 24 hours"
        return f"a voting interval of {interval_s} s is not legal: {why}", "10, 20, 30 and 60 are good"
    if interval_s % _STEP_S:
        # The onion time period (24 intervals) and the shared random run (12) are cut to whole minutes.
        return (
            f"with a voting interval of {interval_s} s onion services drift apart",
            "take a multiple of 5 s",
        )
    return None
