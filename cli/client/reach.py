"""How client commands find tor, a box, and the tokens that they need. No printing but through ui."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bento_tor.cli import ui
from bento_tor.cli.options import tor_options
from bento_tor.client import keyring, tickets
from bento_tor.client.box import Box, connect
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.client.route import DEFAULT_SOCKS, parse_address
from bento_tor.client.tickets import Ticket
from bento_tor.errors import ConfigError, RemoteProtocolError
from bento_tor.policy.document import Policy

F = TypeVar("F", bound=Callable[..., Any])


def reach_options(command: F) -> F:
    """What every command shares that talks to a box."""
    command = click.option(
        "--identity",
        metavar="WORD",
        help="Share circuits with other commands that use the same word. By default none are shared.",
    )(command)
    return tor_options(command)


def box_option(command: F) -> F:
    """`--box ADDRESS`."""
    return click.option(
        "--box",
        "box_address",
        metavar="ADDRESS",
        envvar="BENTO_TOR_BOX",
        required=True,
        help="The box's onion address.",
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
    ) -> None:
        # Only circuits through a chosen relay need the control port; the option is the same everywhere.
        del control
        self.timeout_s = timeout_s
        self._socks = socks
        self._network_dir = network_dir
        self._identity = identity

    def box(self, address: str, *, remember: bool = True) -> Box:
        """The box at `address`, to be entered. A policy that is new is told to the user, and remembered."""
        if parse_address(address).route == "direct":
            ui.warn("this is a direct connection, not through Tor: for tests only")
        kept = keyring.read()
        known, was_signed = kept.policies.get(address), address in kept.signed

        def accept(policy: Policy, digest: bytes) -> None:
            del policy
            # Whoever cannot forge a signature could leave it out.
            if was_signed and not box.policy_signed:
                raise RemoteProtocolError(
                    f"the policy of {address} was signed, and is not any more: it is not used",
                    hint="ask its operator; if that is right, remove the box from 'signed' in your keyring",
                )
            if known is not None:
                ui.warn(f"the policy of {address} has changed; see 'bento-tor client policy'")
            if remember:
                with keyring.changing() as ring:
                    ring.policies[address] = digest
                    if box.policy_signed and address not in ring.signed:
                        ring.signed.append(address)

        box = connect(
            address,
            socks=self._find_socks(),
            identity=self._identity,
            timeout_s=self.timeout_s,
            policy_digest=known,
            accept=accept,
        )
        return box

    def _find_socks(self) -> str:
        if self._socks is not None:
            return self._socks
        if self._network_dir is not None:
            from bento_tor.network.network import Network

            return str(Network.load(Path(self._network_dir)).client.socks)
        return DEFAULT_SOCKS


def pass_reach(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the shared options into one `reach` argument."""

    def wrapped(
        *args: Any,
        socks: str | None,
        control: str | None,
        network_dir: str | None,
        timeout_s: float,
        identity: str | None,
        **kwargs: Any,
    ) -> Any:
        reach = Reach(socks=socks, control=control, network_dir=network_dir, timeout_s=timeout_s, identity=identity)
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


def find_session(name: str) -> tuple[str, KeptSession]:
    """A session by its name, by the name of its function if that has one session only, or by a ticket."""
    ticket = _maybe_ticket(name)
    if ticket is not None:
        if ticket.role != "session":
            raise ConfigError(f"this is a ticket for the {ticket.role} of a function, not a session's")
        return "", KeptSession(ticket.box, "", ticket.token)
    ring = keyring.read()
    if name in ring.sessions:
        return name, ring.sessions[name]
    of_function = [key for key, kept in ring.sessions.items() if kept.function == name]
    if len(of_function) == 1:
        return of_function[0], ring.sessions[of_function[0]]
    if of_function:
        raise ConfigError(f"{name} has {len(of_function)} sessions", hint=f"name one: {', '.join(of_function)}")
    raise ConfigError(f"your keyring has no session {name!r}", hint=_known("sessions", ring.sessions))


def _maybe_ticket(name: str) -> Ticket | None:
    """Tokens never stand on a command line, where `ps` shows them."""
    if name.startswith("bento1:"):
        raise ConfigError("a ticket is a secret, and the command line is not", hint="put it into a file: @FILE, or -")
    if name == "-":
        return tickets.parse(sys.stdin.readline())
    if name.startswith("@"):
        try:
            return tickets.parse(Path(name[1:]).read_text(encoding="utf-8", errors="replace"))
        except OSError as why:
            raise ConfigError(f"cannot read {name[1:]}: {why.strerror}") from why
    return None


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
