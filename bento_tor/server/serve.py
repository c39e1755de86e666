"""`serve`: the two processes of a box, from start to end.

    keeper   who runs serve (root, or a user): sandboxes, the onion service's key, the control connection
    box      forked first, before there is any secret to inherit; as root it becomes a user of its own. It parses
             what clients send, and asks the keeper for sandboxes by fixed-size requests.

They end together: the box when the keeper's socket closes, the keeper when the box's does. Started as root, both see
the state and image folders through a private mount namespace, so that folders below a private home can be used by a
user id that could not reach them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from bento_tor.config import data_dir
from bento_tor.controller import onion, single_hop
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.relay import VIRTUAL_ADDRESS
from bento_tor.controller.services import BOX, Place
from bento_tor.controller.single_hop import SingleHopTor
from bento_tor.courier.errand import Reach
from bento_tor.errors import BentoError, ConfigError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.signature import Signed, sign
from bento_tor.sandbox import images
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper
from bento_tor.sandbox.mounts import private_view
from bento_tor.sandbox.trial import check
from bento_tor.server.box import Box
from bento_tor.server.child import Neighbour, end_child
from bento_tor.server.dispatch import open_courier
from bento_tor.server.doorway import Doorway
from bento_tor.server.enforced import NEEDED, require_layers, require_limits
from bento_tor.server.gateway import open_gate
from bento_tor.server.lookout import Lookout, Seeing, open_seeing
from bento_tor.server.notify import Watchdog, answers, notify, watchdog_s
from bento_tor.server.offer import offer
from bento_tor.server.publisher import Publisher
from bento_tor.server.settings import BoxConfig, check_onion
from bento_tor.server.state import StateDir, listen, listen_operator, maybe_relay, onion_seed, open_state
from bento_tor.server.status import Facts
from bento_tor.server.way_out import WayOut, open_way_out

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_STOP_S = 15
_RECORD_NAME = "record.seed"


class _Terms(msgspec.Struct, frozen=True):
    """What the box must wait for: its address and what else it tells of itself, and the policy that clients see,
    signed."""

    facts: Facts
    signed: Signed


class Serving(msgspec.Struct, frozen=True):
    """A box that is up. `owner`: `box` (we publish it), `relay` (its tor does), `nobody` (not published)."""

    address: str
    port: int
    socket: str
    owner: str
    pid: int
    limits: tuple[str, ...]


def serve(
    config: BoxConfig,
    *,
    ready: Callable[[Serving], None],
    maybe_exit_policy: str | None = None,
    maybe_reach: Reach | None = None,
) -> None:
    """Run a box until SIGTERM or SIGINT. `ready` is called once, when it can be reached. `maybe_exit_policy`: what
    `exit` egress obeys in place of a relay's, for trials (tryout.py). `maybe_reach`: the client by which its functions
    use other boxes, where the policy lets them.

    Raises ConfigError, SandboxError, TorError where it cannot be brought up; then nothing of it is left."""
    check_onion(config)
    with ExitStack() as stack:
        root = os.geteuid() == 0
        state_path = Path(config.state).absolute() if config.state else data_dir() / "box"
        if config.single_hop and not config.control:
            config = msgspec.structs.replace(config, control=str(single_hop.control_of(state_path)))
        state = open_state(state_path, box_uid=config.first_uid if root else None)
        stack.callback(state.close)
        images_dir = Path(config.images).absolute() if config.images else images.default_dir()
        for name in config.policy.images:
            images.load(images_dir, name)
        target = Endpoint.parse(config.listen) if config.listen else state.default_socket
        listeners = [stack.enter_context(listen(place)) for place in (target, *_exit_places(state_path, target))]
        if target.path is not None:
            stack.callback(target.path.unlink, missing_ok=True)
        orders = stack.enter_context(listen_operator(state.operator_socket))
        stack.callback(state.operator_socket.unlink, missing_ok=True)
        seeing = stack.enter_context(open_seeing(config.metrics))
        view = {"state": state_path, "images": images_dir}
        if root:
            view = private_view(view)

        def announce(serving: Serving) -> None:
            ready(serving)
            notify("READY=1", f"STATUS={serving.address}, port {serving.port}")

        _Keeping(config, state, view, listeners, orders, target, announce, stack, seeing, maybe_reach).run(
            root=root, maybe_exit_policy=maybe_exit_policy
        )


def _exit_places(state_path: Path, target: Endpoint) -> list[Endpoint]:
    """The box's virtual address, where setup-relay has opened the relay's exit policy for it."""
    record = maybe_relay(state_path)
    if record is None or record.wanted.exit_port is None:
        return []
    place = Endpoint.tcp(VIRTUAL_ADDRESS, record.wanted.exit_port)
    return [] if place == target else [place]


class _Keeping:
    """The keeper's life, with its box."""

    def __init__(
        self,
        config: BoxConfig,
        state: StateDir,
        view: dict[str, Path],
        listeners: list[socket.socket],
        orders: socket.socket,
        target: Endpoint,
        ready: Callable[[Serving], None],
        stack: ExitStack,
        seeing: Seeing,
        maybe_reach: Reach | None,
    ) -> None:
        self._config = config
        self._state = state
        self._view = view
        self._listeners = listeners
        self._orders = orders
        self._target = target
        self._ready = ready
        self._stack = stack
        self._seeing = seeing
        self._stopping = False
        self._maybe_failure: BentoError | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._maybe_way_out: WayOut | None = None
        self._maybe_gate: Neighbour | None = None
        self._maybe_reach = maybe_reach
        self._maybe_courier: Neighbour | None = None

    def run(self, *, root: bool, maybe_exit_policy: str | None) -> None:
        config = self._config
        # Its own user, because the kernel's rules know the broker by that.
        broker_uid = config.first_uid - 1 if root else None
        self._maybe_way_out = open_way_out(
            config.policy,
            control=config.relay,
            socks=config.socks,
            uid=broker_uid,
            state=self._view["state"],
            maybe_fixed=maybe_exit_policy,
        )
        if self._maybe_way_out is not None:
            self._stack.callback(self._maybe_way_out.stop)
        self._maybe_gate = open_gate(
            config, state=self._state.path, view=self._view["state"], uid=config.first_uid - 2 if root else None
        )
        if self._maybe_gate is not None:
            self._stack.callback(self._maybe_gate.stop)
        self._maybe_courier = open_courier(config, self._maybe_reach, uid=config.first_uid - 3 if root else None)
        if self._maybe_courier is not None:
            self._stack.callback(self._maybe_courier.stop)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address_out, address_in = os.pipe()
        # First of all, while there are no threads and no secrets: what the box inherits is this and no more.
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(address_in)
            self._seeing.keeper.close()
            maybe_line = self._maybe_way_out.leave_to_box() if self._maybe_way_out is not None else None
            maybe_gate = self._maybe_gate.leave_to_box() if self._maybe_gate is not None else None
            maybe_courier = self._maybe_courier.leave_to_box() if self._maybe_courier is not None else None
            _become_box(
                config,
                self._view,
                self._listeners,
                self._orders,
                theirs,
                maybe_line,
                maybe_gate,
                maybe_courier,
                self._seeing,
                address_out,
                root=root,
            )
        theirs.close()
        self._seeing.leave_to_box()
        os.close(address_out)
        if self._maybe_way_out is not None:
            self._maybe_way_out.box.close()
        if self._maybe_gate is not None:
            self._maybe_gate.box.close()
        if self._maybe_courier is not None:
            self._maybe_courier.box.close()
        self._stack.callback(end_child, pid, "box", within_s=_STOP_S)
        self._stack.callback(ours.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._begin_stop(pid))
        # Closed before the box is waited for: without an address it ends at once.
        self._keep(ours, self._stack.enter_context(os.fdopen(address_in, "wb")), pid)

    def _keep(self, sock: socket.socket, address_in: BinaryIO, pid: int) -> None:
        policy = self._config.policy
        found = [images.load(self._view["images"], name) for name in policy.images]
        way_out = self._maybe_way_out
        doors = self._view["state"] / "doors" if way_out is not None else None
        gates = self._view["state"] / "gates" if self._maybe_gate is not None else None
        couriers = self._view["state"] / "couriers" if self._maybe_courier is not None else None
        with Jail(*found, doors=doors, gates=gates, couriers=couriers) as jail:
            check(jail)
            require_layers(jail)
            require_limits(jail, self._config)
            address, port, owner, maybe_seed = self._onion()
            if self._stopping:
                return
            if way_out is not None:
                way_out.open()
            facts = self._facts(address, port, owner, jail)
            signed = self._sign(offer(policy, found, cgroups=jail.effective >= NEEDED, address=address), address)
            with suppress(BrokenPipeError), address_in:  # the box has gone: the keeper, below, sees it at once
                address_in.write(msgspec.msgpack.encode(_Terms(facts, signed)))
            serving = Serving(address, port, str(self._target), owner, os.getpid(), tuple(sorted(jail.effective)))
            self._publish(maybe_seed, serving)
            keeper = Keeper(
                sock,
                jail,
                ceiling=policy.limits,
                max_sessions=policy.sessions,
                egress=way_out.line if way_out is not None else None,
                gate=self._maybe_gate.line if self._maybe_gate is not None else None,
                courier=self._maybe_courier.line if self._maybe_courier is not None else None,
                pool_size=self._config.ready,
                maybe_look=way_out.look if way_out is not None else None,
            )
            self._look_out(facts, keeper)
            keeper.run(self._stop_fd)
            self._stopping = self._stopping or keeper.leaving
        if self._maybe_failure is not None:
            raise self._maybe_failure
        if not self._stopping:
            raise BentoError("the box's process ended by itself", hint="its log, above, says why")

    def _facts(self, address: str, port: int, owner: str, jail: Jail) -> Facts:
        relay = maybe_relay(self._view["state"])
        control = relay.control if relay is not None else self._config.control
        config, enforced = self._config, tuple(sorted(jail.effective))
        return Facts(address, port, owner, str(self._target), control, config.relay, enforced, config.metrics)

    def _look_out(self, facts: Facts, keeper: Keeper) -> None:
        """Tell the box what only we see, and the service manager that all of us live."""
        onion_at = None
        if facts.owner != "nobody":
            onion_at = (Endpoint.parse(facts.control) if facts.control else None, facts.address)
        lookout = Lookout(self._seeing.keeper, onion_at, keeper.count_ready, self._seeing.complaints)
        self._stack.callback(lookout.stop)
        lookout.start()
        if (period_s := watchdog_s()) is not None:
            orders = self._state.operator_socket
            watchdog = Watchdog(period_s, lambda: answers(orders, within_s=period_s / 4))
            self._stack.callback(watchdog.stop)
            watchdog.start()

    def _sign(self, policy: Policy, address: str) -> Signed:
        """Signed with the onion service's key where that is ours. A key that a relay's tor made itself is in a form
        that cannot sign for us: that box's policy is unsigned, and clients are told."""
        state, written = self._view["state"], document.encode(policy)
        try:
            identity = onion.load_seed(onion_seed(state))
        except FileNotFoundError:
            return Signed(written)
        if onion.onion_address(identity) != address:
            return Signed(written)
        return sign(written, identity, onion.load_or_mint_seed(state / "keys" / _RECORD_NAME))

    def _onion(self) -> tuple[str, int, str, bytes | None]:
        """The box's address, and who puts it up: the relay's tor, or we; never both."""
        relay = maybe_relay(self._view["state"])
        if relay is not None:
            if self._config.publish:
                raise ConfigError(
                    f"setup-relay has given this box the address {relay.address} already",
                    hint="leave --publish out, or undo it with 'bento-tor setup-relay --undo'",
                )
            return relay.address, relay.port, "relay", None
        seed = onion.load_or_mint_seed(onion_seed(self._view["state"]))
        owner = "box" if self._config.publish else "nobody"
        return onion.onion_address(seed), self._config.port, owner, seed if self._config.publish else None

    def _publish(self, maybe_seed: bytes | None, serving: Serving) -> None:
        if maybe_seed is None:
            self._ready(serving)
            return

        def done(maybe_error: BentoError | None) -> None:
            if maybe_error is None:
                self._ready(serving)
            else:
                self._maybe_failure = maybe_error
                os.eventfd_write(self._stop_fd, 1)

        control = Endpoint.parse(self._config.control) if self._config.control else None
        publisher = Publisher(
            control,
            maybe_seed,
            self._config.port,
            self._target,
            done,
            defences=self._config.defences,
            access=Place(self._view["state"]).access(BOX),
            single_hop=self._config.single_hop,
            maybe_own=self._maybe_own_tor(control),
        )
        self._stack.callback(publisher.stop)
        publisher.start()

    def _maybe_own_tor(self, control: Endpoint | None) -> SingleHopTor | None:
        if not self._config.single_hop or control != single_hop.control_of(self._state.path):
            return None
        extra = self._config.single_hop_torrc
        return SingleHopTor(self._state.path, extra=Path(extra) if extra else None)

    def _begin_stop(self, pid: int) -> None:
        """The box ends its sessions, which still takes us; we end when its socket closes. A second signal hurries."""
        if self._stopping:
            os.eventfd_write(self._stop_fd, 1)
        self._stopping = True
        notify("STOPPING=1")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _become_box(
    config: BoxConfig,
    view: dict[str, Path],
    listeners: list[socket.socket],
    orders: socket.socket,
    keeper: socket.socket,
    maybe_line: socket.socket | None,
    maybe_gate: socket.socket | None,
    maybe_courier: socket.socket | None,
    seeing: Seeing,
    address_out: int,
    *,
    root: bool,
) -> None:
    """In the child: drop every right, wait for the box's address, serve. Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the keeper, which then tells us
        if root:
            os.setgroups([])
            os.setresgid(config.first_uid, config.first_uid, config.first_uid)
            os.setresuid(config.first_uid, config.first_uid, config.first_uid)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with os.fdopen(address_out, "rb") as pipe:
            told = pipe.read()
        if told:  # else the keeper could not go on, and says why
            terms = msgspec.msgpack.decode(told, type=_Terms)
            database = view["state"] / "box" / "box.db"
            Box(
                listeners,
                keeper,
                orders,
                maybe_line,
                maybe_gate,
                maybe_courier,
                database=database,
                facts=terms.facts,
                seeing=seeing,
                signed=terms.signed,
                doorway=Doorway(
                    config.clients, circuit_ids=config.circuit_ids, most_of_circuit=config.clients_per_circuit
                ),
                spool_bytes=config.spool_bytes,
                audit=config.audit,
            ).run()
        status = 0
    except BentoError as error:
        log.error("%s", error.message)
    except Exception:
        log.exception("the box's machinery broke")
    finally:
        os._exit(status)
