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
from bento_tor.controller import onion
from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import BentoError, ConfigError, SandboxError
from bento_tor.policy import document
from bento_tor.policy.document import Policy
from bento_tor.policy.signature import Signed, sign
from bento_tor.sandbox import images, layers
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper
from bento_tor.sandbox.mounts import private_view
from bento_tor.sandbox.trial import check
from bento_tor.server.box import Box
from bento_tor.server.offer import offer
from bento_tor.server.publisher import Publisher
from bento_tor.server.settings import BoxConfig
from bento_tor.server.state import StateDir, listen, listen_operator, maybe_relay, onion_seed, open_state
from bento_tor.server.way_out import WayOut, open_way_out

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_STOP_S = 15
_RECORD_NAME = "record.seed"
# The limits that hold for a session in sum only by cgroups.
_NEEDED = frozenset({"memory", "pids"})


class _Terms(msgspec.Struct, frozen=True):
    """What the box must wait for: its address, and the policy that clients see, signed."""

    address: str
    signed: Signed


class Serving(msgspec.Struct, frozen=True):
    """A box that is up. `owner`: `box` (we publish it), `relay` (its tor does), `nobody` (not published)."""

    address: str
    port: int
    socket: str
    owner: str
    pid: int
    limits: tuple[str, ...]


def serve(config: BoxConfig, *, ready: Callable[[Serving], None]) -> None:
    """Run a box until SIGTERM or SIGINT. `ready` is called once, when it can be reached.

    Raises ConfigError, SandboxError, TorError where it cannot be brought up; then nothing of it is left."""
    with ExitStack() as stack:
        root = os.geteuid() == 0
        state_path = Path(config.state).absolute() if config.state else data_dir() / "box"
        state = open_state(state_path, box_uid=config.first_uid if root else None)
        stack.callback(state.close)
        images_dir = Path(config.images).absolute() if config.images else images.default_dir()
        for name in config.policy.images:
            images.load(images_dir, name)
        target = Endpoint.parse(config.listen) if config.listen else state.default_socket
        listener = stack.enter_context(listen(target))
        if target.path is not None:
            stack.callback(target.path.unlink, missing_ok=True)
        orders = stack.enter_context(listen_operator(state.operator_socket))
        stack.callback(state.operator_socket.unlink, missing_ok=True)
        view = {"state": state_path, "images": images_dir}
        if root:
            view = private_view(view)
        _Keeping(config, state, view, listener, orders, target, ready, stack).run(root=root)


class _Keeping:
    """The keeper's life, with its box."""

    def __init__(
        self,
        config: BoxConfig,
        state: StateDir,
        view: dict[str, Path],
        listener: socket.socket,
        orders: socket.socket,
        target: Endpoint,
        ready: Callable[[Serving], None],
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._state = state
        self._view = view
        self._listener = listener
        self._orders = orders
        self._target = target
        self._ready = ready
        self._stack = stack
        self._stopping = False
        self._maybe_failure: BentoError | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._maybe_way_out: WayOut | None = None

    def run(self, *, root: bool) -> None:
        config = self._config
        # Its own user, because the kernel's rules know the broker by that.
        broker_uid = config.first_uid - 1 if root else None
        self._maybe_way_out = open_way_out(config.policy, control=config.relay, socks=config.socks, uid=broker_uid)
        if self._maybe_way_out is not None:
            self._stack.callback(self._maybe_way_out.stop)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address_out, address_in = os.pipe()
        # First of all, while there are no threads and no secrets: what the box inherits is this and no more.
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(address_in)
            maybe_line = self._maybe_way_out.leave_to_box() if self._maybe_way_out is not None else None
            _become_box(config, self._view, self._listener, self._orders, theirs, maybe_line, address_out, root=root)
        theirs.close()
        os.close(address_out)
        if self._maybe_way_out is not None:
            self._maybe_way_out.box.close()
        self._stack.callback(_end, pid)
        self._stack.callback(ours.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._begin_stop(pid))
        # Closed before the box is waited for: without an address it ends at once.
        self._keep(ours, self._stack.enter_context(os.fdopen(address_in, "wb")), pid)

    def _keep(self, sock: socket.socket, address_in: BinaryIO, pid: int) -> None:
        policy = self._config.policy
        found = [images.load(self._view["images"], name) for name in policy.images]
        way_out = self._maybe_way_out
        with Jail(*found, doors=self._view["state"] / "doors" if way_out is not None else None) as jail:
            check(jail)
            _require_layers(jail)
            _require_limits(jail, self._config)
            address, port, owner, maybe_seed = self._onion()
            if self._stopping:
                return
            if way_out is not None:
                way_out.open()
            with suppress(BrokenPipeError), address_in:  # the box has gone: the keeper, below, sees it at once
                address_in.write(
                    msgspec.msgpack.encode(
                        _Terms(address, self._sign(offer(policy, found, cgroups=jail.effective >= _NEEDED), address))
                    )
                )
            serving = Serving(address, port, str(self._target), owner, os.getpid(), tuple(sorted(jail.effective)))
            self._publish(maybe_seed, serving)
            keeper = Keeper(
                sock,
                jail,
                ceiling=policy.limits,
                max_sessions=policy.sessions,
                egress=way_out.line if way_out is not None else None,
                pool_size=self._config.ready,
            )
            keeper.run(self._stop_fd)
        if self._maybe_failure is not None:
            raise self._maybe_failure
        if not self._stopping:
            raise BentoError("the box's process ended by itself", hint="its log, above, says why")

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
        publisher = Publisher(control, maybe_seed, self._config.port, self._target, done)
        self._stack.callback(publisher.stop)
        publisher.start()

    def _begin_stop(self, pid: int) -> None:
        """The box ends its sessions, which still takes us; we end when its socket closes. A second signal hurries."""
        if self._stopping:
            os.eventfd_write(self._stop_fd, 1)
        self._stopping = True
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _become_box(
    config: BoxConfig,
    view: dict[str, Path],
    listener: socket.socket,
    orders: socket.socket,
    keeper: socket.socket,
    maybe_line: socket.socket | None,
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
                listener, keeper, orders, maybe_line, database=database, address=terms.address, signed=terms.signed
            ).run()
        status = 0
    except BentoError as error:
        log.error("%s", error.message)
    except Exception:
        log.exception("the box's machinery broke")
    finally:
        os._exit(status)


def _end(pid: int) -> None:
    """Wait for the box; insist if it does not go."""
    fd = os.pidfd_open(pid)
    try:
        done = _wait(fd, _STOP_S)
        if not done:
            log.warning("the box did not end in %d seconds; killing it", _STOP_S)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(fd)


def _wait(fd: int, timeout_s: float) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _require_layers(jail: Jail) -> None:
    """Every layer that no stranger's code may run without, tried in real sandboxes at every start."""
    missing = layers.missing(layers.probe(jail))
    if missing:
        raise SandboxError(
            f"this machine does not enforce {', '.join(layer.name for layer in missing)}",
            hint="'bento-tor doctor' says what was seen; docs/threat-model.md what each is for",
        )


def _require_limits(jail: Jail, config: BoxConfig) -> None:
    """Without cgroups a function's processes are limited one by one only, and in sum not at all."""
    missing = sorted(_NEEDED - jail.effective)
    if missing and config.limits == "cgroups":
        raise SandboxError(
            f"this machine lets us set no cgroup limits for {' and '.join(missing)}",
            hint='run as root, delegate a cgroup, or set limits = "rlimits-only" and accept weaker ones',
        )
