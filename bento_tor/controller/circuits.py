"""A circuit of our own through a path that we chose, kept to our own streams. Only for a tor that is ours alone: on it
`__LeaveStreamsUnattached` is set, which on anybody else's tor would hang his other programs.

    read_path_facts   what paths need, asked from tor
    Circuits          watches that tor: which circuits stand, whose a stream is
    KeptCircuit       one circuit to one relay: built, attached to, built again when it has died

Every stream of that tor is told of. Those that carry a SOCKS word of ours are attached to its circuit; all others are
given back to tor at once.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

from bento_tor.controller.events import CircuitEvent, StreamEvent
from bento_tor.controller.paths import (
    Consensus,
    NoDescriptor,
    Path,
    Relay,
    Rules,
    choose_path,
    extend_order,
    parse_consensus,
    parse_family,
    parse_guards,
)
from bento_tor.controller.tor import Events, Tor
from bento_tor.errors import BentoError, ConnectError, TorError

# A relay that lets no circuit stand must not choose our middle hop by that: after so many paths it is enough.
MAX_PATHS = 3
# tor's own circuits seldom take a quarter of it (CircuitBuildTimeout begins at 60 s, and is learnt).
_BUILD_S = 30.0
_POLL_S = 0.5
# The missing descriptors of a fresh tor come in a second or two; where they do not, others are drawn.
_DESCRIPTORS_S = 10.0
_MAX_ENDED = 1000
# Why a stream ended: nothing came back. A word of ours.
NO_ANSWER = "NOANSWER"
# control-spec, CLOSESTREAM: the reasons of RELAY_END cells.
_END_MISC = 1
_END_REASONS = {"RESOLVEFAILED": 2, "CONNECTREFUSED": 3, "EXITPOLICY": 4, "DESTROY": 5, "TIMEOUT": 7}


@dataclass(frozen=True)
class PathFacts:
    """What a path is chosen from. `guards`: tor's own, the best first."""

    consensus: Consensus
    guards: tuple[str, ...]
    rules: Rules


def read_path_facts(tor: Tor) -> PathFacts:
    """Ask a bootstrapped tor. Raises TorError."""
    return PathFacts(
        read_consensus(tor),
        parse_guards(tor.get_info("entry-guards")),
        Rules(distinct_subnets=tor.get_conf("EnforceDistinctSubnets") != ["0"]),
    )


def read_consensus(tor: Tor) -> Consensus:
    """The consensus that this tor has now. Raises TorError where it has none."""
    return parse_consensus(tor.get_info("dir/status-vote/current/consensus-microdesc"))


def learn(tor: Tor, deadline: float, relay: Relay) -> Relay:
    """That relay with its family and country, as far as this tor knows them. A tor that has just begun has not every
    descriptor yet: until the deadline it is waited for. Raises NoDescriptor, TorError."""
    while not (microdescriptor := tor.msg(f"GETINFO md/id/{relay.fingerprint}")).ok:
        if time.monotonic() >= deadline:
            raise NoDescriptor(f"tor has no descriptor of the relay {relay.words} yet", hint="try again in a minute")
        time.sleep(_POLL_S)
    family, family_ids = parse_family(microdescriptor.text)
    country = ""
    if relay.addresses:
        told = tor.msg(f"GETINFO ip-to-country/{relay.addresses[0]}")  # refused where the GeoIP file is not installed
        country = told.lines[0].partition("=")[2] if told.ok else ""
    return replace(relay, family=family, family_ids=family_ids, country=country)


class Circuits:
    """The circuits that are kept on one tor of our own, and the thread that watches it. A context manager.

    `guards`: fingerprints in the order in which they were met before; of those that tor offers now the first is used.
    tor's own order changes as it tries one more of them."""

    def __init__(self, tor: Tor, guards: Sequence[str] = ()) -> None:
        self.tor = tor
        self.guards = tuple(guards)
        self.changed = threading.Condition()
        self.over = False  # nobody watches any more
        self._built: set[str] = set()
        self._ended: dict[str, str] = {}  # circuits, and why
        self._kept: dict[str, KeptCircuit] = {}  # by the word of their streams
        self._streams: dict[str, KeptCircuit] = {}
        self._closing = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Circuits:
        events = self._stack.enter_context(self.tor.events("CIRC", "STREAM"))
        watcher = threading.Thread(target=self._watch, args=(events,), name="bento-circuits", daemon=True)
        watcher.start()
        self._stack.callback(watcher.join, 5.0)
        self._stack.callback(self._closing.set)
        return self

    def __exit__(self, *exc: object) -> None:
        for kept in list(self._kept.values()):
            kept.close()
        with suppress(TorError):  # tor may have gone
            self._stack.close()

    def keep(self, last: Relay, word: str) -> KeptCircuit:
        """A circuit that ends at `last`, for the streams that log in at the SOCKS port as `word`; not built yet."""
        with self.changed:
            return self._kept.setdefault(word, KeptCircuit(self, last))

    def state(self, circuit_id: str) -> str | None:
        """Why it ended; empty: it stands; None: it is not built yet."""
        if circuit_id in self._ended:
            return self._ended[circuit_id]
        return "" if circuit_id in self._built else None

    def _watch(self, events: Events) -> None:
        try:
            while not self._closing.is_set():
                event = events.maybe_next(_POLL_S)
                if isinstance(event, CircuitEvent):
                    self._see_circuit(event)
                elif isinstance(event, StreamEvent):
                    self._see_stream(event)
        except BentoError:
            pass  # tor has gone: whoever waits for it is told by his own call
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def _see_circuit(self, event: CircuitEvent) -> None:
        with self.changed:
            if event.status == "BUILT":
                self._built.add(event.circuit_id)
            elif event.status in ("FAILED", "CLOSED"):
                self._built.discard(event.circuit_id)
                self._ended[event.circuit_id] = event.keyword("REMOTE_REASON") or event.reason or event.status
                while len(self._ended) > _MAX_ENDED:
                    del self._ended[next(iter(self._ended))]
            self.changed.notify_all()

    def _see_stream(self, event: StreamEvent) -> None:
        if event.status in ("NEW", "NEWRESOLVE"):
            self._attach(event)
        elif event.stream_id in self._streams and event.status in ("DETACHED", "FAILED", "CLOSED"):
            # The first that is told of its end says why; what follows is our own closing of it.
            self._end(event, self._streams.pop(event.stream_id))

    def _attach(self, event: StreamEvent) -> None:
        kept = self._kept.get(event.keyword("SOCKS_USERNAME"))
        if kept is None:
            self.tor.msg(f"ATTACHSTREAM {event.stream_id} 0")
            return
        self._streams[event.stream_id] = kept
        circuit_id = kept.circuit_id
        if not circuit_id or not self.tor.msg(f"ATTACHSTREAM {event.stream_id} {circuit_id}").ok:
            # Never on a circuit that tor would choose.
            kept.note_end("DESTROY")
            self.tor.msg(f"CLOSESTREAM {event.stream_id} {_END_REASONS['DESTROY']}")

    def _end(self, event: StreamEvent, kept: KeptCircuit) -> None:
        reason = event.keyword("REMOTE_REASON") or event.reason
        if event.reason == "TIMEOUT":
            # Not the relay's word: no answer came back through it. tor puts no more on such a circuit; nor do we.
            kept.leave()
            reason = NO_ANSWER
        kept.note_end(reason)
        if event.status == "DETACHED":
            # tor waits for us to attach it elsewhere; it belongs nowhere else.
            self.tor.msg(f"CLOSESTREAM {event.stream_id} {_END_REASONS.get(reason, _END_MISC)}")


class KeptCircuit:
    """One circuit to one relay, which is built again when it has died. Made by `Circuits.keep`."""

    def __init__(self, circuits: Circuits, last: Relay) -> None:
        self.last = last
        self._circuits = circuits
        self._building = threading.Lock()
        self._circuit_id = ""
        self._maybe_path: Path | None = None
        self._end_reason = ""

    @property
    def maybe_path(self) -> Path | None:
        """The path of the circuit that stands, or stood last."""
        return self._maybe_path

    @property
    def circuit_id(self) -> str:
        """tor's number of the circuit that stands; empty where none does."""
        circuit_id = self._circuit_id
        return circuit_id if self._circuits.state(circuit_id) == "" else ""

    def ready(self, *, timeout_s: float) -> Path:
        """The path of the circuit, which stands when this returns; built where there is none.

        After a circuit has died the same path is tried first: a relay that closes circuits on purpose does not get
        another middle hop for it, and another, until one is its friend's. Raises ConnectError where no circuit comes
        up, TorError where tor fails us."""
        deadline = time.monotonic() + timeout_s
        why = ""
        with self._building:
            if self.circuit_id and self._maybe_path is not None:
                return self._maybe_path
            for _ in range(MAX_PATHS):
                self._maybe_path = self._maybe_path or self._choose(min(deadline, time.monotonic() + _DESCRIPTORS_S))
                why = self._build(self._maybe_path, deadline)
                if not why:
                    return self._maybe_path
                self._maybe_path = None
                if time.monotonic() > deadline:
                    break
        raise ConnectError(
            f"no circuit to the relay {self.last.words} came up: {why}",
            hint="try again; where it goes on, that relay may be down or overloaded",
        )

    def note_end(self, reason: str) -> None:
        """A stream of this circuit's ended, for that reason of tor's. That one ended well explains no failure: it is
        the one before."""
        if reason == "DONE":
            return
        with self._circuits.changed:
            self._end_reason = reason
            self._circuits.changed.notify_all()

    def wait_end_reason(self, timeout_s: float) -> str:
        """Why the newest stream on it ended, in tor's word (control-spec, STREAM: REASON, REMOTE_REASON); empty: it is
        not known after `timeout_s` seconds. A failure that the SOCKS port tells may be there before tor's event."""
        with self._circuits.changed:
            self._circuits.changed.wait_for(lambda: bool(self._end_reason) or self._circuits.over, timeout_s)
            return self._end_reason

    def forget_end(self) -> None:
        """Another stream is about to begin."""
        self._end_reason = ""

    def leave(self) -> None:
        """Attach no more to that circuit: the next stream gets a new one. What is on it stays."""
        self._circuit_id = ""

    def close(self) -> None:
        """Have tor close the circuit."""
        circuit_id, self._circuit_id = self._circuit_id, ""
        self._close(circuit_id)

    def _choose(self, deadline: float) -> Path:
        tor = self._circuits.tor
        facts = read_path_facts(tor)
        self._circuits.guards = extend_order(self._circuits.guards, facts.guards)
        guards = [each for each in self._circuits.guards if each in facts.guards]
        chance = secrets.SystemRandom().random
        return choose_path(facts.consensus, self.last, guards, facts.rules, partial(learn, tor, deadline), chance)

    def _build(self, path: Path, deadline: float) -> str:
        """Why it failed; empty: it stands, and is ours."""
        hops = ",".join(f"${relay.fingerprint}" for relay in path.hops)
        reply = self._circuits.tor.msg(f"EXTENDCIRCUIT 0 {hops}")
        found = re.fullmatch(r"EXTENDED (\d+)", reply.lines[0])
        if not reply.ok or found is None:
            return reply.lines[-1]
        circuit_id, circuits = found[1], self._circuits
        with circuits.changed:
            left_s = min(_BUILD_S, max(0.1, deadline - time.monotonic()))
            circuits.changed.wait_for(lambda: circuits.state(circuit_id) is not None or circuits.over, left_s)
            why = circuits.state(circuit_id)
        if why == "":
            self._circuit_id = circuit_id
            return ""
        self._close(circuit_id)
        return (why or "it took too long").lower()

    def _close(self, circuit_id: str) -> None:
        if circuit_id and self._circuits.state(circuit_id) in ("", None) and self._circuits.tor.alive:
            with suppress(TorError):
                self._circuits.tor.msg(f"CLOSECIRCUIT {circuit_id}")


def words_of(path: Sequence[Relay]) -> str:
    """`r4 -> r1 -> r2`"""
    return " -> ".join(relay.nickname for relay in path)
