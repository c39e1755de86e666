"""The keeper's side of egress: the broker's process, the rules that it holds, and the kernel's rules behind it.

The relay's own tor is asked what its exit policy is, again and again, because an operator may change it. While that is
not known nothing gets out by `exit`: not at the start, not when tor has gone.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path

import msgspec

from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.policy import maybe_exit_policy
from bento_tor.controller.tor import Tor
from bento_tor.egress import nft, process
from bento_tor.egress.broker import Settings
from bento_tor.egress.grants import Caps, Rules
from bento_tor.egress.host import own_addresses, resolvers
from bento_tor.egress.link import KeeperLine
from bento_tor.errors import BentoError, ConfigError, SandboxError
from bento_tor.policy import exit_policy
from bento_tor.policy.destinations import Destinations, maybe_address, parse_operator
from bento_tor.policy.document import Policy
from bento_tor.server import blocks

log = logging.getLogger(__name__)

# How soon a change of the relay's exit policy is noticed.
_POLL_S = 10.0
_RETRY_S = 5.0


class WayOut:
    """Egress for the functions of one box. Made by `open_way_out`; call `stop` at the end, from the main thread."""

    def __init__(
        self,
        policy: Policy,
        started: process.Started,
        relay: Endpoint | None,
        settings: Settings,
        uid: int | None,
        state: Path,
        maybe_fixed: str | None,
    ):
        self.line = KeeperLine(started.keeper)
        self.box: socket.socket = started.box
        self._policy = policy
        self._pid = started.pid
        self._relay = relay
        self._settings = settings
        self._uid = uid
        self._state_dir = state
        self._maybe_fixed = maybe_fixed
        self._lines: tuple[str, ...] = ()
        # Stated by the thread that follows the relay, and by the operator's orders.
        self._stating = threading.Lock()
        self._last: Rules | None = None
        self._kernels: Rules | None = None
        self.maybe_claim: socket.socket | None = None  # goes with the process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exit-policy", daemon=True)

    def open(self) -> None:
        """Close the kernel's door too, then begin to follow the relay's exit policy. Raises SandboxError as root
        where the kernel takes no rules: what they stop must not get out because a package is missing; ConfigError where
        what is blocked cannot be read."""
        self._lines = self._read_lines()
        self._state(Rules(self._maybe_fixed))
        if "exit" in self._policy.egress and self._maybe_fixed is None:
            self._thread.start()

    def look(self) -> None:
        """Read again what the operator has blocked; it holds, in broker and kernel, when this returns, and running
        connections there are closed. Raises BentoError where it does not."""
        lines = self._read_lines()
        with self._stating:
            self._lines = lines
            if not self._tell(self._last or Rules(None)):
                raise SandboxError("the egress broker does not answer", hint="stop the box: its log says more")

    def leave_to_box(self) -> socket.socket:
        """In the box's process, after the fork: its line to the broker; the keeper's is none of its business."""
        self.line.close()
        return self.box

    def stop(self) -> None:
        """Nothing gets out any more; the broker ends, and the kernel's rules go."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        self.line.close()
        os.waitpid(self._pid, 0)
        if self._uid is not None:
            try:
                nft.unload(self._uid)
            except SandboxError as error:
                log.warning("the kernel's rules for egress stay behind: %s", error.message)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._relay) as tor:
                    while tor.alive and not self._stop.is_set():
                        self._follow(tor)
                        self._stop.wait(_POLL_S)
            except BentoError as error:
                log.warning("the relay's exit policy is not known, exit egress is closed: %s", error.message)
            try:
                self._state(Rules(None))
            except SandboxError as error:
                log.error("exit egress is closed: %s", error.message)
            self._stop.wait(_RETRY_S)

    def _follow(self, tor: Tor) -> None:
        text = maybe_exit_policy(tor)
        self._state(Rules(text, own=_relay_addresses(tor)))

    def _read_lines(self) -> tuple[str, ...]:
        """The operator's: what he has blocked stands before what his policy says. Raises ConfigError."""
        return (*blocks.rules(self._state_dir), *self._policy.egress_rules)

    def _state(self, rules: Rules) -> None:
        with self._stating:
            self._tell(rules)

    def _tell(self, rules: Rules) -> bool:
        """State to broker and kernel, where something has changed; the operator's lines are added here. False: the
        broker did not take it. Raises SandboxError where the kernel does not; then the broker is closed."""
        rules = msgspec.structs.replace(rules, operator=self._lines)
        if rules == self._last:
            return True
        try:
            self._load(rules)
        except SandboxError:
            self._last = None
            self.line.set_rules(Rules(None, self._lines))
            raise
        if not self.line.set_rules(rules):
            return False
        self._last = rules
        return True

    def _load(self, rules: Rules) -> None:
        """The kernel's part. Of a policy that is not known now it keeps the last one: the broker, which accepts
        nothing new, gives running connections their grace. What the operator has blocked has none."""
        if self._uid is None:
            return
        if rules.exit_policy is None and self._kernels is not None:
            rules = msgspec.structs.replace(self._kernels, operator=rules.operator)
        if rules == self._kernels:
            return
        destinations = Destinations(
            exit_policy.parse(rules.exit_policy) if rules.exit_policy is not None else None,
            parse_operator(rules.operator),
            own_addresses() | {address for text in rules.own if (address := maybe_address(text)) is not None},
        )
        nft.load(nft.render(destinations, uid=self._uid, resolvers=resolvers(), maybe_socks=self._kernel_socks()))
        self._kernels = rules

    def _kernel_socks(self) -> tuple[exit_policy.IPAddress, int] | None:
        found = self._settings.maybe_socks
        if not isinstance(found, tuple):
            return None
        address = maybe_address(found[0])
        return (address, found[1]) if address is not None else None


def open_way_out(
    policy: Policy, *, control: str, socks: str, uid: int | None, state: Path, maybe_fixed: str | None = None
) -> WayOut | None:
    """Start the broker where the policy offers egress: before there are threads, and before the box is forked.

    `control`: the relay's control port (empty: look for one). `socks`: tor's SOCKS port, for `tor` egress. `uid`: the
    broker's user id, as root. `state`: where what the operator has blocked is kept. `maybe_fixed`: an exit policy in
    place of the relay's. Raises ConfigError where a class is offered that cannot be had."""
    if not policy.egress:
        return None
    if "tor" in policy.egress and not socks:
        raise ConfigError("the policy offers egress through tor, and no SOCKS port is named", hint="set socks = ...")
    claim = _claim(uid) if uid is not None else None
    endpoint = Endpoint.parse(socks) if socks else None
    settings = Settings(
        offers=policy.egress,
        ceiling=Caps(connections=policy.connections, bytes_out=max(policy.egress_bytes, 1)),
        tor_socks=(str(endpoint.path) if endpoint.path else str(endpoint)) if endpoint is not None else "",
    )
    relay = Endpoint.parse(control) if control else None
    way_out = WayOut(policy, process.start(settings, uid=uid), relay, settings, uid, state, maybe_fixed)
    way_out.maybe_claim = claim
    return way_out


def _claim(uid: int) -> socket.socket:
    """Two boxes with one broker's user would put each other's kernel rules away."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0bento-tor/egress/{uid}")
    except OSError as why:
        claim.close()
        raise ConfigError(
            f"another box on this machine offers egress under the user id {uid}",
            hint="give this one user ids of its own: first_uid = ...",
        ) from why
    return claim


def _relay_addresses(tor: Tor) -> tuple[str, ...]:
    """The relay's own addresses as it tells them: connections to them would come from its own machine."""
    found = []
    for key in ("address/v4", "address/v6"):
        reply = tor.msg(f"GETINFO {key}")
        if reply.ok:
            found.append(reply.lines[0].removeprefix(f"{key}="))
    return tuple(found)
