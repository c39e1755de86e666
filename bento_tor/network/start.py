"""One start of a network, from keys to the proof that it works. What runs is written down before the next is
started.

Owns no tidying up: `life.up` ends what was begun, whatever ends this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from bento_tor.controller.launch import LaunchedTor, launch
from bento_tor.network import state as states
from bento_tor.network.keys import Identity, make_keys
from bento_tor.network.network import Network
from bento_tor.network.plan import Node, Role, plan_schedule
from bento_tor.network.probe import fetch_through_onion
from bento_tor.network.torrc import Shared, render_bandwidths, render_torrc
from bento_tor.network.watch import Watch, consensus_size

DEFAULTS_FILE = "torrc-defaults"
BANDWIDTHS_FILE = "bandwidths"
PROBE_FILE = "probe"
_POLL_S = 0.1

Report = Callable[[str], None]
_T = TypeVar("_T")


class Start:
    """One run of `up`, in a place that is already claimed. `begun` is in seconds of time.monotonic()."""

    def __init__(self, place: Path, begun: float, timeout_s: float, report: Report, *, owner_pid: int) -> None:
        self._place = place
        self._begun = begun
        self._timeout_s = timeout_s
        self._report = report
        self._owner_pid = owner_pid
        self._state = states.load(place)
        self._launched: dict[str, LaunchedTor] = {}

    def run(self) -> Network:
        """Bring it up. Raises ConfigError, TorError, ConnectError, OSError."""
        self._report("making keys")
        identities = self._make_keys()
        self._write_torrcs(identities)
        self._launch_all()
        watch = Watch(self._launched, patience_s=self._timeout_s)
        try:
            self._first_reply(watch)
            self._all_ready(watch)
        finally:
            watch.close()
        self._save(ready=True)
        return Network(self._place, self._state)

    def _make_keys(self) -> tuple[Identity, ...]:
        for node in self._state.nodes:
            node.directory.mkdir(mode=0o700)
        (self._place / DEFAULTS_FILE).touch()
        servers = self._with(Role.AUTHORITY, Role.RELAY, Role.EXIT)
        identities = make_keys(servers, self._place / DEFAULTS_FILE)
        self._time("keygen_s")
        return identities

    def _write_torrcs(self, identities: Sequence[Identity]) -> None:
        bandwidths = self._place / BANDWIDTHS_FILE
        bandwidths.write_text(render_bandwidths([i.fingerprint for i in identities], time.time()), encoding="ascii")
        lines = tuple(identity.dir_authority for identity in identities if identity.v3ident)
        schedule = plan_schedule(self._state.settings, time.time())
        shared = Shared(lines, schedule, bandwidths, self._owner_pid)
        for node in self._state.nodes:
            node.torrc.write_text(render_torrc(node, shared), encoding="utf-8")

    def _launch_all(self) -> None:
        """Authorities first: a relay that finds none when it publishes does not try again for long."""
        for node in self._state.nodes:
            self._report(f"starting {node.name}")
            defaults = self._place / DEFAULTS_FILE
            started = launch(node.name, node.torrc, control=node.control, log=node.log, defaults=defaults)
            self._launched[node.name] = started
            self._save(processes={**self._state.processes, node.name: started.process})

    def _first_reply(self, watch: Watch) -> None:
        """The first fetch, as soon as one client and one relay are able to: not gated on the rest."""
        hosts, clients = self._with(Role.RELAY, Role.EXIT), self._with(Role.CLIENT)

        def maybe_pair() -> tuple[Node, Node] | None:
            ready = [next((n for n in some if watch.done([n.name])), None) for some in (hosts, clients)]
            return (ready[0], ready[1]) if ready[0] and ready[1] else None

        host, client = self._wait_for(watch, maybe_pair)
        self._time("circuits_s")
        fetch_through_onion(
            watch.tor(host.name),
            client.socks,
            self._place / PROBE_FILE,
            timeout_s=self._timeout_s,
            report=lambda text: self._report(f"{watch.words()}; first onion service: {text}"),
        )
        watch.touch()
        self._time("first_reply_s")

    def _all_ready(self, watch: Watch) -> None:
        names = [node.name for node in self._state.nodes]
        clients = [node.name for node in self._with(Role.CLIENT)]
        servers = self._state.settings.authorities + self._state.settings.relays

        def maybe_full() -> bool | None:
            # Asked only when all are there: a consensus is long.
            full = watch.done(names) and all(consensus_size(watch.tor(n)) >= servers for n in clients)
            return full or None

        self._wait_for(watch, maybe_full)
        self._time("ready_s")

    def _wait_for(self, watch: Watch, maybe_found: Callable[[], _T | None]) -> _T:
        while True:
            watch.look()
            self._report(watch.words())
            found = maybe_found()
            if found is not None:
                return found
            time.sleep(_POLL_S)

    def _with(self, *roles: Role) -> tuple[Node, ...]:
        return tuple(node for node in self._state.nodes if node.role in roles)

    def _time(self, name: str) -> None:
        seconds = round(time.monotonic() - self._begun, 3)
        self._save(timings=msgspec.structs.replace(self._state.timings, **{name: seconds}))

    def _save(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        states.save(self._place, self._state)
