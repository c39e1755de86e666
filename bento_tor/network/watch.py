"""How far each node of a network is, asked from the nodes themselves over control connections that stay
open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bento_tor.controller.bootstrap import Bootstrap, read_bootstrap
from bento_tor.controller.connection import connect
from bento_tor.controller.launch import LaunchedTor, stuck
from bento_tor.controller.tor import Tor
from bento_tor.errors import TorError
from bento_tor.network.plan import Node

# A young tor makes keys on its one thread before it answers.
_CONNECT_TIMEOUT_S = 10.0
_NOT_STARTED = Bootstrap(0, "starting", "Starting")


@dataclass(frozen=True)
class NodeStatus:
    """One node as it is now. `consensus`: how many running relays it knows; 0: it has no consensus yet."""

    name: str
    role: str
    pid: int
    alive: bool
    bootstrap: Bootstrap
    consensus: int


class Watch:
    """Control connections to all nodes of a network that is coming up. Close it."""

    def __init__(self, launched: Mapping[str, LaunchedTor], *, patience_s: float) -> None:
        self._launched = dict(launched)
        self._patience_s = patience_s
        self._tors: dict[str, Tor] = {}
        self._done: dict[str, Bootstrap] = {}
        self.progress: dict[str, Bootstrap] = dict.fromkeys(launched, _NOT_STARTED)
        self._last_progress = time.monotonic()

    def close(self) -> None:
        """Hang up everywhere."""
        for tor in self._tors.values():
            tor.close()

    def tor(self, name: str) -> Tor:
        """The connection to that node. Raises TorError where it has none yet."""
        if name not in self._tors:
            raise TorError(f"tor {name} has no control port yet")
        return self._tors[name]

    def look(self) -> None:
        """Ask all nodes that are not done. Raises TorError for a dead one, TorTimeout when nobody gets on any
        more."""
        for name, launched in self._launched.items():
            launched.check()
            if not self.progress[name].done:
                self._ask(name, launched)
        if time.monotonic() - self._last_progress > self._patience_s:
            name, where = min(self.progress.items(), key=lambda item: item[1].progress)
            raise stuck(name, where, self._patience_s, self._launched[name].log)

    def done(self, names: Iterable[str]) -> bool:
        """Whether all of these are at 100 %."""
        return all(self.progress[name].done for name in names)

    def touch(self) -> None:
        """Count something else that went well as progress."""
        self._last_progress = time.monotonic()

    def words(self) -> str:
        """`3 of 9 nodes ready; r1 50 % loading_descriptors, ...`"""
        ready = sum(where.done for where in self.progress.values())
        rest = [f"{name} {b.progress} % {b.tag}" for name, b in self.progress.items() if not b.done]
        return f"{ready} of {len(self.progress)} nodes ready" + (f"; {', '.join(rest)}" if rest else "")

    def _ask(self, name: str, launched: LaunchedTor) -> None:
        if name not in self._tors:
            maybe_tor = _maybe_connect(launched)
            if maybe_tor is None:
                return
            self._tors[name] = maybe_tor
        try:
            now = read_bootstrap(self._tors[name])
        except TorError:
            launched.check()  # a tor that died says more than a connection that closed
            raise
        if now.progress > self.progress[name].progress:
            self.touch()
        self.progress[name] = now


def _maybe_connect(launched: LaunchedTor) -> Tor | None:
    path = launched.control.path
    if path is None or not path.exists():
        return None
    try:
        return connect(launched.control, timeout_s=_CONNECT_TIMEOUT_S)
    except TorError:
        launched.check()
        return None  # the socket is there an instant before it listens


def consensus_size(tor: Tor) -> int:
    """How many running relays that tor's consensus names; 0: none yet. Raises TorError."""
    reply = tor.msg("GETINFO ns/all")
    flags = [line for line in reply.text.splitlines() if line.startswith("s ")]
    return sum(" Running" in line for line in flags)


def node_status(node: Node, pid: int, alive: bool) -> NodeStatus:
    """That node as it is now; asks it. A node that lives and does not answer is told apart by its tag
    `silent`."""
    if not alive:
        return NodeStatus(node.name, node.role, pid, False, Bootstrap(0, "dead", "Not running"), 0)
    try:
        with connect(node.control, timeout_s=_CONNECT_TIMEOUT_S) as tor:
            return NodeStatus(node.name, node.role, pid, True, read_bootstrap(tor), consensus_size(tor))
    except TorError as why:
        return NodeStatus(node.name, node.role, pid, True, Bootstrap(0, "silent", why.message), 0)
