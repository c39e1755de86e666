"""`Network`: a private network as programs use it. What is asked of it comes from its directory, so that any
process may hold one; starting and ending it are in `life`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bento_tor.controller.connection import connect
from bento_tor.controller.processes import ProcessId, identify
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, TorError
from bento_tor.network import state as states
from bento_tor.network.plan import NetworkSettings, Node, Role
from bento_tor.network.state import Extra, State, Timings

# What in a torrc is one node's own; the rest is the network's.
_OF_ONE_NODE = {"DataDirectory", "ControlSocket", "CookieAuthentication", "Log", "SocksPort"} | {
    "AvoidDiskWrites", "__OwningControllerProcess",
}  # fmt: skip


class Network:
    """The network in `directory`, as its state told when this was loaded."""

    def __init__(self, directory: Path, state: State) -> None:
        self.directory = directory
        self._state = state

    @classmethod
    def load(cls, directory: Path) -> Network:
        """The network in that directory. Raises ConfigError where there is none."""
        place = directory.absolute()
        return cls(place, states.load(place))

    @property
    def settings(self) -> NetworkSettings:
        """How many of what it has."""
        return self._state.settings

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All of its tors: authorities, relays, clients."""
        return self._state.nodes

    @property
    def authorities(self) -> tuple[Node, ...]:
        """Those that vote."""
        return self._with(Role.AUTHORITY)

    @property
    def relays(self) -> tuple[Node, ...]:
        """The relays, exits last."""
        return self._with(Role.RELAY, Role.EXIT)

    @property
    def exits(self) -> tuple[Node, ...]:
        """The relays that accept public addresses."""
        return self._with(Role.EXIT)

    @property
    def clients(self) -> tuple[Node, ...]:
        """Those with a SOCKS port."""
        return self._with(Role.CLIENT)

    @property
    def client(self) -> Node:
        """The first client: `.socks` and `.control` are what a user of the network needs."""
        return self.clients[0]

    @property
    def own_folder(self) -> Path:
        """Where a user's own tor in this network may keep its data; `down` removes it."""
        return self.client.directory / "own"

    def own_lines(self) -> tuple[str, ...]:
        """The torrc lines that make a client of this network of any tor. Raises ConfigError."""
        try:
            lines = self.client.torrc.read_text(encoding="utf-8").splitlines()
        except OSError as why:
            raise ConfigError(f"cannot read {self.client.torrc}: {why.strerror}") from why
        return tuple(
            line for line in lines if line and not line.startswith("#") and line.split()[0] not in _OF_ONE_NODE
        )

    @property
    def ready(self) -> bool:
        """Whether `up` has seen it ready."""
        return self._state.ready

    @property
    def timings(self) -> Timings:
        """How long its start took."""
        return self._state.timings

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Other processes that belong to it."""
        return self._state.extras

    def node(self, name: str) -> Node:
        """The node of that name. Raises ConfigError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ConfigError(f"no node is called {name!r}", hint=f"there are {', '.join(n.name for n in self.nodes)}")

    def maybe_process(self, node: Node) -> ProcessId | None:
        """The process of that node; None where it was never started. It may have died since."""
        return self._state.processes.get(node.name)

    def connect(self, node: Node, *, timeout_s: float = 10.0) -> Tor:
        """A control connection to that node. Raises TorError."""
        return connect(node.control, timeout_s=timeout_s)

    def adopt(self, name: str, pid: int, *, directory: Path | None = None) -> None:
        """Make that running process part of the network: `down` ends it (SIGTERM) before the tors.

        It takes the place of one of that name that has ended. `directory`, inside the network's own, is then
        removed with it. Raises TorError where it does not run, ConfigError where the directory lies elsewhere,
        OSError."""
        process = identify(pid)
        if process is None:
            raise TorError(f"{name} (process {pid}) does not run")
        if directory is not None and self.directory not in directory.absolute().parents:
            raise ConfigError(f"{directory} is not inside {self.directory}")  # nothing else may be deleted
        current = states.load(self.directory)
        extra = Extra(name, process, directory.absolute() if directory else None)
        others = [other for other in current.extras if other.name != name or other.process.alive]
        self._state = msgspec.structs.replace(current, extras=(*others, extra))
        states.save(self.directory, self._state)

    def _with(self, *roles: Role) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.role in roles)
