"""The exit route: to a box by a circuit that ends at its own relay, which lets exactly the box's port out. No
rendezvous, so fewer hops than an onion service has; and the relay, which is the box's, sees no more than the box does.

The tor is one of our own (`controller.own_tor`), started with the first box that is reached this way, and ended with
the route. The relay's key vouches for the last hop; the box's policy is signed by an onion address that this route
does not know, so users keep what they saw first (`keyring`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import socks

from bento_tor.client.route import BoxAddress, TorStream, is_relay, parse_address
from bento_tor.client.transport import Broken
from bento_tor.config import user_dir
from bento_tor.controller.bootstrap import Bootstrap
from bento_tor.controller.circuits import NO_ANSWER, Circuits, KeptCircuit, read_consensus, words_of
from bento_tor.controller.own_tor import OwnTor, own_tor
from bento_tor.controller.paths import Consensus, Relay, find_relay
from bento_tor.controller.relay import EXIT_PORT
from bento_tor.controller.streams import SocksStream
from bento_tor.errors import BentoError, ConfigError, ConnectError, TorError

log = logging.getLogger(__name__)

# tor's event on a stream's end comes with what the SOCKS port says, a little before or after it.
_REASON_S = 2.0

Report = Callable[[str], None]


def default_folder() -> Path:
    """Where the data of the route's tor is kept: its entry guards above all."""
    return user_dir() / "exit-route"


@dataclass(frozen=True)
class _Running:
    own: OwnTor
    circuits: Circuits
    consensus: Consensus


class ExitRoute:
    """Ways to boxes through their relays, on one tor of our own. A context manager; safe for several threads.

    folder     where that tor's data is kept; one for each Tor network
    lines      more lines of its torrc: those of a private network
    timeout_s  the longest wait for that tor without any progress; for a circuit, in all
    report     told what is being done"""

    def __init__(
        self,
        folder: Path | None = None,
        lines: Sequence[str] = (),
        *,
        timeout_s: float = 120.0,
        report: Report = log.info,
    ) -> None:
        self._folder = folder or default_folder()
        self._lines = tuple(lines)
        self._timeout_s = timeout_s
        self._report = report
        self._starting = threading.Lock()
        self._stack = ExitStack()
        self._maybe_running: _Running | None = None

    def __enter__(self) -> ExitRoute:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End its tor. Harmless when repeated."""
        with self._starting:
            self._maybe_running = None
            self._stack.close()

    def resolve(self, name: str) -> BoxAddress:
        """The box beside the relay of that fingerprint or nickname, `[:PORT]` behind it.

        A fingerprint needs no tor. Raises ConfigError for a nickname that no relay has, or several; TorError."""
        host, colon, port = name.partition(":")
        if not is_relay(name):
            host = find_relay(self._running().consensus, host).fingerprint
        return parse_address(f"{host}{colon}{port}")

    def transport(self, address: BoxAddress, *, isolation: str, timeout_s: float | None = None) -> ExitTransport:
        """A way to the box at `address` (of route `exit`), for `client.connect`. Boxes and isolation words never share
        a circuit."""
        return ExitTransport(self, address, isolation=isolation, timeout_s=timeout_s or self._timeout_s)

    def circuit(self, address: BoxAddress, word: str) -> tuple[KeptCircuit, OwnTor]:
        """The circuit to that box's relay for streams of that SOCKS word; built, and standing.

        Raises ConfigError where the relay is not there, ConnectError where no circuit comes up, TorError."""
        running = self._running()
        kept = running.circuits.keep(find_relay(running.consensus, address.host), word)
        before = kept.circuit_id
        path = kept.ready(timeout_s=self._timeout_s)
        if kept.circuit_id != before:
            self._keep_guards(running.circuits.guards)
            self._report(f"circuit: {words_of(path.hops)}")
        return kept, running.own

    def path(self, address: BoxAddress) -> tuple[Relay, ...]:
        """The hops of a circuit to that box's relay, first to last. Raises as `circuit`."""
        kept, _ = self.circuit(address, f"path {address}")
        return kept.maybe_path.hops if kept.maybe_path is not None else ()

    def _running(self) -> _Running:
        with self._starting:
            if self._maybe_running is not None and not self._maybe_running.own.tor.alive:
                self._maybe_running = None
                self._stack.close()
            if self._maybe_running is None:
                self._maybe_running = self._start()
            return self._maybe_running

    @property
    def _guards_file(self) -> Path:
        return self._folder / "data" / "guards"  # that folder is for its owner only

    def _kept_guards(self) -> tuple[str, ...]:
        """The fingerprints of the guards of the commands before, of which several may run at once; the first first."""
        try:
            return tuple(self._guards_file.read_text(encoding="ascii").split())
        except (FileNotFoundError, UnicodeDecodeError):
            return ()

    def _keep_guards(self, fingerprints: tuple[str, ...]) -> None:
        with self._starting:
            if fingerprints == self._kept_guards():
                return
            staged = self._guards_file.with_name(f"guards-{os.getpid()}")
            try:
                staged.write_text("\n".join(fingerprints) + "\n", encoding="ascii")
                staged.replace(self._guards_file)
            except OSError as why:
                raise ConfigError(f"cannot keep the entry guards in {staged.parent}: {why.strerror}") from why

    def _start(self) -> _Running:
        self._report("starting a tor of our own")

        def tell(progress: Bootstrap) -> None:
            self._report(f"a tor of our own: {progress.words}")

        with ExitStack() as stack:
            own = stack.enter_context(own_tor(self._folder, self._lines, timeout_s=self._timeout_s, report=tell))
            circuits = stack.enter_context(Circuits(own.tor, self._kept_guards()))
            running = _Running(own, circuits, read_consensus(own.tor))
            self._stack = stack.pop_all()
            return running


class ExitTransport:
    """To one box through its relay. The circuit stands as long as it lives, and is built again when it has died."""

    builds_circuits = True

    def __init__(self, route: ExitRoute, address: BoxAddress, *, isolation: str, timeout_s: float) -> None:
        self._route = route
        self._address = address
        # Of the isolation word tor learns a hash only.
        self._word = hashlib.sha256(f"{address} {isolation}".encode(errors="surrogateescape")).hexdigest()[:32]
        self._timeout_s = timeout_s

    def open(self) -> ExitStream:
        """A stream on which the first `send` asks for the box. Raises as `ExitRoute.circuit`."""
        circuit, own = self._route.circuit(self._address, self._word)
        circuit.forget_end()
        sock = SocksStream(own.socks, user=self._word, password="bento")  # noqa: S106 - any; the pair isolates
        sock.settimeout(self._timeout_s)
        try:
            sock.meet()
        except (socks.ProxyError, OSError) as why:
            sock.close()
            raise TorError("the tor of the exit route does not answer", hint="try again") from why
        return ExitStream(sock, self._address, own, circuit, timeout_s=self._timeout_s)


class ExitStream(TorStream):
    """A stream that leaves at the box's relay. What tor's SOCKS port says of a failure is explained by its events."""

    def __init__(
        self, sock: SocksStream, address: BoxAddress, own: OwnTor, circuit: KeptCircuit, *, timeout_s: float
    ) -> None:
        super().__init__(sock, address, own.socks, timeout_s=timeout_s)
        self._circuit = circuit
        self._port = address.port

    def hear(self) -> None:
        """See `TorStream`."""
        try:
            super().hear()
        except (ConnectError, TorError) as why:
            raise self._explain(why) from why

    def _explain(self, why: BentoError) -> BentoError:
        relay, reason = self._circuit.last.words, self._circuit.wait_end_reason(_REASON_S)
        if reason == "EXITPOLICY":
            port = "" if self._port == EXIT_PORT else f" at port {self._port}"
            return ConnectError(
                f"the relay {relay} takes nobody to a box{port}: its exit policy does not accept that",
                hint="use the box's onion address; its operator opens this way with setup-relay --exit-port",
            )
        if reason == "CONNECTREFUSED":
            return ConnectError(
                f"the relay {relay} is set up for a box, and the box is not there", hint="is the box running?"
            )
        if reason in ("DESTROY", "CANT_ATTACH"):
            return Broken(f"the circuit to the relay {relay} broke")
        if reason == NO_ANSWER:
            return Broken(f"nothing came back through the relay {relay}: the circuit hangs, or the box does")
        if reason:
            return ConnectError(f"the box beside the relay {relay} cannot be reached ({reason.lower()})", hint=why.hint)
        return why
