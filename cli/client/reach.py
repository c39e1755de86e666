"""How client commands find tor, a box, and the tokens that they need. No printing but through ui."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import structs

from bento_tor.cli import ui
from bento_tor.cli.completion import complete_box
from bento_tor.cli.options import tor_options
from bento_tor.client import keyring, tickets
from bento_tor.client.box import Box, connect
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.client.retries import Reconnecting
from bento_tor.client.route import DEFAULT_SOCKS, parse_address
from bento_tor.client.tickets import Ticket
from bento_tor.errors import ConfigError, RemoteProtocolError
from bento_tor.policy.document import Policy

if TYPE_CHECKING:
    from bento_tor.client.exit_route import ExitRoute
    from bento_tor.client.transport import Transport

F = TypeVar("F", bound=Callable[..., Any])
# One that names many boxes is the longest.
_MAX_TICKET_CHARS = 8192


def reach_options(command: F) -> F:
    """What every command shares that talks to a box."""
    command = click.option(
        "--identity",
        metavar="WORD",
        help="Share circuits with other commands that use the same word. By default none are shared.",
    )(command)
    command = click.option(
        "--route",
        type=click.Choice(["onion", "exit"]),
        help="How to get to the box: by its onion service, or by a circuit that ends at its relay.  [default: onion; "
        "exit where the box is named by a fingerprint]",
    )(command)
    return tor_options(command)


def box_option(command: F) -> F:
    """`--box ADDRESS`."""
    return click.option(
        "--box",
        "box_address",
        metavar="ADDRESS",
        envvar="BENTO_TOR_BOX",
        show_envvar=True,
        required=True,
        shell_complete=complete_box,
        help="The box's onion address; with --route exit its relay's fingerprint or nickname.",
    )(command)


class Reach:
    """The shared options, as one value."""

    def __init__(
        self,
        *,
        socks: str | None,
        control: str | None,
        network_dir: str | None,
        timeout_s: float,
        identity: str | None,
        route: str | None = None,
    ) -> None:
        # Only client authorisation needs the control port; the option is the same everywhere.
        del control
        self.timeout_s = timeout_s
        self._route = route
        self._maybe_exit: ExitRoute | None = None
        self._socks = socks
        self._network_dir = network_dir
        self._identity = identity

    def find(self, name: str) -> str:
        """The box that a user names, as everything else names it. A relay's nickname becomes its fingerprint: any
        relay may take the same name tomorrow."""
        if self._route == "exit" and not name.endswith(".onion") and not name.startswith("unix:"):
            with ui.progress(f"looking for the relay {name}"):
                return str(self.exit_route().resolve(name))
        place = parse_address(name)
        if self._route is not None and place.route != self._route:
            raise ConfigError(f"{name} is not reached by --route {self._route}", hint="leave --route out")
        return str(place) if place.route == "exit" else name

    def exit_route(self) -> ExitRoute:
        """The exit route of this command; it ends with the command."""
        if self._maybe_exit is None:
            context = click.get_current_context()
            for name in ("socks", "control"):
                if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--{name} names a tor of others: the exit route starts one of its own.")
            self._maybe_exit = self._start_exit()
            context.call_on_close(self._maybe_exit.close)
        return self._maybe_exit

    def _start_exit(self) -> ExitRoute:
        from bento_tor.client.exit_route import ExitRoute

        if self._network_dir is None:
            return ExitRoute(timeout_s=self.timeout_s)
        from bento_tor.network.network import Network

        network = Network.load(Path(self._network_dir))
        return ExitRoute(network.own_folder, network.own_lines(), timeout_s=self.timeout_s)

    def _maybe_transport(self, address: str) -> Transport | None:
        place = parse_address(address)
        if place.route != "exit":
            return None
        return self.exit_route().transport(place, isolation=self._identity or os.urandom(16).hex())

    def box(self, address: str, *, remember: bool = True) -> Box:
        """The box at `address`, to be entered. A policy that is new is told to the user, and remembered."""
        if parse_address(address).route == "direct":
            ui.warn("this is a direct connection, not through Tor: for tests only")
        kept = keyring.read()
        known = kept.policies.get(address)
        # What signed is pinned: a pin without the other is from a keyring of an earlier version.
        was_signed = address in kept.signed or address in kept.pins

        def accept(policy: Policy, digest: bytes) -> None:
            pin = _check_pin(address, policy, kept) if box.policy_signed else {}
            # Whoever cannot forge a signature could leave it out.
            if was_signed and not box.policy_signed:
                raise RemoteProtocolError(
                    f"the policy of {address} was signed, and is not any more: it is not used",
                    hint="ask its operator; if that is right, 'bento-tor client keys forget' makes it a new box",
                )
            if known is not None:
                ui.warn(f"the policy of {address} has changed; see 'bento-tor client policy'")
            if remember:
                with keyring.changing() as ring:
                    ring.policies[address] = digest
                    ring.pins |= pin
                    if box.policy_signed and address not in ring.signed:
                        ring.signed.append(address)
                for relay, onion in pin.items():
                    if relay not in kept.pins:
                        ui.say(f"the box beside the relay {relay} is {onion}, it says: checked from now on")

        box = connect(
            address,
            socks=self._find_socks(),
            identity=self._identity,
            timeout_s=self.timeout_s,
            policy_digest=known,
            accept=accept,
            # A box that the keyring does not know, and shall not, is not written down because its connection broke.
            ledger=keyring.KeptLedger(address) if remember or address in kept.boxes() else None,
            on_reconnect=_say_reconnecting,
            transport=self._maybe_transport(address),
        )
        return box

    def _find_socks(self) -> str:
        if self._socks is not None:
            return self._socks
        if self._network_dir is not None:
            from bento_tor.network.network import Network

            return str(Network.load(Path(self._network_dir)).client.socks)
        return DEFAULT_SOCKS


def _check_pin(address: str, policy: Policy, kept: keyring.Keyring) -> dict[str, str]:
    """By the exit route nobody knows which onion address a box has, so the one that signed first is held on to: the
    pin to keep. Raises RemoteProtocolError where another one signs now."""
    if parse_address(address).route != "exit":
        return {}
    pinned = kept.pins.get(address, policy.address)
    if pinned != policy.address:
        raise RemoteProtocolError(
            f"the box beside the relay {address} was {pinned}, and calls itself {policy.address} now: it is not used",
            hint="ask its operator; if that is right, 'bento-tor client keys forget' makes it a new box",
        )
    return {address: policy.address}


def _say_reconnecting(event: Reconnecting) -> None:
    ui.say(f"the connection broke: {event.why}; attempt {event.attempt} to come back in {event.wait_s:.1f} seconds")


def pass_reach(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the shared options into one `reach` argument."""

    def wrapped(
        *args: Any,
        socks: str | None,
        control: str | None,
        network_dir: str | None,
        timeout_s: float,
        identity: str | None,
        route: str | None,
        **kwargs: Any,
    ) -> Any:
        reach = Reach(
            socks=socks,
            control=control,
            network_dir=network_dir,
            timeout_s=timeout_s,
            identity=identity,
            route=route,
        )
        if kwargs.get("box_address") is not None:
            kwargs["box_address"] = reach.find(kwargs["box_address"])
        return command(*args, reach=reach, **kwargs)

    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return reach_options(wrapped)


def find_function(name: str) -> tuple[str, Kept]:
    """A stored function by its name in the keyring, or by a ticket in a file or on standard input."""
    ticket = _maybe_ticket(name)
    if ticket is not None:
        if ticket.role == "session":
            raise ConfigError("this is the ticket of a session, not of a function")
        shutdown = ticket.token if ticket.role == "shutdown" else None
        return "", Kept(ticket.box, ticket.token, shutdown)
    ring = keyring.read()
    if name not in ring.functions:
        raise ConfigError(f"your keyring has no function {name!r}", hint=_known("functions", ring.functions))
    return name, ring.functions[name]


def find_session(name: str, *, maybe_box: str | None = None, ended_too: bool = False) -> tuple[str, KeptSession]:
    """A session by its name, by the name of its function if that has one session only, or by a ticket.

    Its name is empty where it is not in the keyring. `maybe_box`: where a token without a box's name belongs, or
    another way to a box. `ended_too`: one that has ended will do; of several the newest."""
    ticket = _maybe_ticket(name, maybe_box)
    if ticket is not None:
        if ticket.role != "session":
            raise ConfigError(f"this is a ticket for the {ticket.role} of a function, not a session's")
        box = maybe_box or ticket.box
        known_as = keyring.read().maybe_session(box, ticket.token) or ""
        return (known_as, keyring.read().sessions[known_as]) if known_as else ("", KeptSession(box, "", ticket.token))
    known_as, kept = _find_kept(name, ended_too=ended_too)
    return known_as, structs.replace(kept, box=maybe_box or kept.box)


def _find_kept(name: str, *, ended_too: bool) -> tuple[str, KeptSession]:
    ring = keyring.read()
    found = {key: kept for key, kept in ring.sessions.items() if key == name} or {
        key: kept for key, kept in ring.sessions.items() if kept.function == name
    }
    running = {key: kept for key, kept in found.items() if kept.state == keyring.RUNNING}
    if ended_too and found:
        return (running or found).popitem()
    if len(running) == 1:
        return running.popitem()
    if running:
        raise ConfigError(f"{name} has {len(running)} sessions", hint=f"name one: {', '.join(running)}")
    if found:
        key, kept = found.popitem()
        raise ConfigError(
            f"{key} has ended ({kept.state})", hint=f"'bento-tor client logs {key}' shows what it printed"
        )
    raise ConfigError(f"your keyring has no session {name!r}", hint=_known("sessions", ring.sessions))


def _maybe_ticket(name: str, maybe_box: str | None = None) -> Ticket | None:
    maybe_text = _maybe_secret(name)
    return None if maybe_text is None else tickets.parse(maybe_text, maybe_box=maybe_box)


def read_ticket(name: str) -> str:
    """The text of a ticket: @FILE, or - for standard input. Raises ConfigError."""
    maybe_text = _maybe_secret(name)
    if maybe_text is None:
        raise ConfigError(f"{name!r} names no ticket", hint="it is read from a file, as @FILE, or from input, as -")
    return maybe_text


def _maybe_secret(name: str) -> str | None:
    """Tokens never stand on a command line, where `ps` shows them."""
    if name.startswith("bento1:"):
        raise ConfigError("a ticket is a secret, and the command line is not", hint="put it into a file: @FILE, or -")
    if name == "-" and stdin_is_terminal():
        prompted: str = click.prompt("ticket", hide_input=True, err=True)
        return prompted
    if name == "-":
        return _first_line()
    if name.startswith("@"):
        try:
            with Path(name[1:]).open(encoding="utf-8", errors="replace") as file:
                return file.read(_MAX_TICKET_CHARS)
        except OSError as why:
            raise ConfigError(f"cannot read {name[1:]}: {why.strerror}") from why
    return None


def _first_line() -> str:
    """Of standard input, and not a byte more: what follows is the function's."""
    line = bytearray()
    with suppress(OSError):
        while len(line) < _MAX_TICKET_CHARS and (byte := os.read(0, 1)) not in (b"", b"\n"):
            line += byte
    return line.decode("utf-8", "replace")


def _known(what: str, names: dict[str, Any]) -> str:
    return f"it has these {what}: {', '.join(sorted(names))}" if names else f"it has no {what} yet"


def no_keyring_option(command: F) -> F:
    """`--no-keyring`: write nothing to disk."""
    return click.option("--no-keyring", is_flag=True, help="Remember nothing: print the tickets only.")(command)


def stdin_is_terminal() -> bool:
    """Whether a person types."""
    try:
        return os.isatty(0)
    except OSError:
        return False
