"""Setting a running tor up for a box by its control port alone: what it says now, what it shall say, the change, and
the way back. For a tor whose files are elsewhere; where they are here, `changeover` writes them.

`plan` is pure. Everything is set by SETCONF, in one command that tor takes whole or not at all, and lasts until that
tor restarts or reads its torrc again. Two things are set:

    the onion endpoint   a HiddenServiceDir of tor's own, leading to the box's unix socket
    the exit endpoint    an exit policy that accepts one virtual address and port, in front of what is there.
                         Not 127.0.0.1: a client closes a stream whose exit names an internal address.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bento_tor.controller.debian import Instance
from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.onion import is_onion_address, maybe_place_key, wait_uploaded
from bento_tor.controller.policy import maybe_exit_policy
from bento_tor.errors import ConfigError, TorError, TorTimeout
from bento_tor.policy.exit_policy import accepts, parse

if TYPE_CHECKING:  # who only speaks to a SOCKS port has no use for stem
    from bento_tor.controller.tor import Tor

# RFC 5737's TEST-NET-1: on no real network, so it can only be this host's own. The same at every box.
VIRTUAL_ADDRESS = "192.0.2.80"
# BENTO on a telephone's keys. One port for every box: a client needs to know the relay, and nothing else.
EXIT_PORT = 23686
SERVICE_DIR = "bento-box"
_EXIT_OPTIONS = ("ExitRelay", "ExitPolicy")
_POLL_S = 0.5

Line = tuple[str, str]


class RelayPart(msgspec.Struct, frozen=True):
    """What makes a relay of a tor that is none. `bandwidth` is in torrc's words; empty: no cap."""

    nickname: str
    orport: str
    contact: str = ""
    bandwidth: str = ""
    family: tuple[str, ...] = ()
    exit: bool = False


class Wanted(msgspec.Struct, frozen=True):
    """What the box needs. `exit_port` None: no exit endpoint. `relay`, only in files: the tor becomes a relay too.
    `state`: the folder of the box."""

    target: str
    onion_port: int = 80
    exit_port: int | None = None
    state: str = ""
    relay: RelayPart | None = None


class Found(msgspec.Struct, frozen=True):
    """What tor says now. Service lines keep their order: each HiddenServiceDir opens a block."""

    data_directory: str
    is_relay: bool
    services: tuple[Line, ...]
    exit_relay: str
    exit_policy: tuple[str, ...]
    reduced_policy: bool


class Change(msgspec.Struct, frozen=True):
    """Lines to set, whole groups at a time; `removed` and `added` are what a person wants to see."""

    lines: tuple[tuple[str, str | None], ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Nothing to do."""
        return not self.removed and not self.added


class SetUp(msgspec.Struct, frozen=True):
    """The record of a set-up, kept in the box's state: what `serve` needs, and what `undo` puts back.

    By SETCONF: `before` is what tor said. In files: `instance` says whose, `made_folder` whether we made torrc.d,
    and `serial` which run wrote this."""

    address: str
    port: int
    control: str
    wanted: Wanted
    before: Found | None = None
    added_address: bool = False
    instance: Instance | None = None
    made_folder: bool = False
    serial: str = ""


def read_settings(tor: Tor) -> Found:
    """What this tor says now. Raises TorError."""
    services = [_split(line) for line in tor.ask("GETCONF HiddenServiceOptions").lines]
    return Found(
        data_directory=_one(tor, "DataDirectory"),
        is_relay=_one(tor, "ORPort") not in ("", "0"),
        services=tuple(line for line in services if line[1]),
        exit_relay=_one(tor, "ExitRelay") or "auto",
        exit_policy=tuple(tor.get_conf("ExitPolicy")),
        reduced_policy=_one(tor, "ReducedExitPolicy") == "1",
    )


def plan(found: Found, wanted: Wanted) -> Change:
    """What must change for `wanted`. Raises ConfigError where it cannot be had from this tor."""
    if wanted.exit_port is not None and not found.is_relay:
        raise ConfigError("this tor is no relay (it has no ORPort): it cannot be a way in by exit")
    block = _service_block(found, wanted)
    services = [*_without_ours(found), *block]
    exit_lines = _exit_lines(found, wanted) if wanted.exit_port is not None else _current_exit(found)
    return _change(found, tuple(services), exit_lines)


def plan_undo(found: Found, before: Found, wanted: Wanted) -> Change:
    """The way back: our service goes, others stay as they are now; the exit policy becomes what it was before."""
    exit_lines = _current_exit(found)
    if wanted.exit_port is not None:
        ours = _exit_lines(before, wanted)
        # Somebody changed the policy since: take away what is ours, and leave the rest to him.
        exit_lines = _current_exit(before) if exit_lines == ours else _without_our_accept(exit_lines)
    return _change(found, tuple(_without_ours(found)), exit_lines)


def apply(tor: Tor, change: Change) -> None:
    """Set it, all or nothing. Raises TorError in tor's words."""
    if change.empty:
        return
    nulls = tuple(line for line in change.lines if line[1] is None)
    values = tuple(line for line in change.lines if line[1] is not None)
    if values:
        tor.set_conf(values)
    if nulls:
        tor.set_conf(nulls, reset=True)


def apply_and_learn(tor: Tor, found: Found, change: Change, *, timeout_s: float) -> str:
    """Set it, and return the address of our service. Raises TorError, in tor's words where it refuses.

    Where tor's folder is out of reach (it runs elsewhere), it is told by the descriptor that tor makes now."""
    with tor.events("HS_DESC") as events:
        apply(tor, change)
        try:
            return service_address(Path(found.data_directory))
        except TorError as why:
            for event in events.until(time.monotonic() + timeout_s):
                if isinstance(event, HsDescEvent) and event.action in ("CREATED", "UPLOAD"):
                    return f"{event.address}.onion"
            raise why


def place_key(found: Found, seed: bytes) -> bool:
    """Give our service a key that we know, before tor makes one of its own: only so can the box sign its policy.
    False: it has one already, or tor's folder is not within reach."""
    return maybe_place_key(Path(_our_dir(found)), seed)


def service_address(data_directory: Path) -> str:
    """The address that tor gave to our service. Raises TorError where its folder cannot be read."""
    path = data_directory / SERVICE_DIR / "hostname"
    try:
        address = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as why:
        raise TorError(
            f"cannot read {path}: {getattr(why, 'strerror', why)}", hint="run setup-relay as root, or as tor's own user"
        ) from why
    if not is_onion_address(address):
        raise TorError(f"{path} holds no onion address")
    return address


def confirm(tor: Tor, address: str, wanted: Wanted, *, timeout_s: float) -> None:
    """See in what tor reports that both endpoints are there. Raises TorTimeout where they are not in time."""
    deadline = time.monotonic() + timeout_s
    wait_uploaded(tor, address, timeout_s=timeout_s)
    if wanted.exit_port is not None:
        confirm_exit(tor, wanted.exit_port, timeout_s=max(deadline - time.monotonic(), 1.0))


def confirm_exit(tor: Tor, exit_port: int, *, timeout_s: float) -> None:
    """See in the policy that tor states that it accepts the box. Raises TorTimeout where it does not in time."""
    deadline = time.monotonic() + timeout_s
    # tor states its policy from its descriptor, which it rebuilds some seconds after a change; and it leaves out
    # rules that a later one makes redundant, so the policy is judged, not searched.
    box = IPv4Address(VIRTUAL_ADDRESS)
    while not accepts(parse(maybe_exit_policy(tor) or ""), box, exit_port):
        if time.monotonic() > deadline:
            raise TorTimeout(f"tor does not say that it accepts {box}:{exit_port}", hint="see its log; is it a relay?")
        time.sleep(_POLL_S)


def _service_block(found: Found, wanted: Wanted) -> list[Line]:
    return [
        ("HiddenServiceDir", _our_dir(found)),
        ("HiddenServiceVersion", "3"),
        ("HiddenServicePort", f"{wanted.onion_port} {wanted.target}"),
    ]


def _our_dir(found: Found) -> str:
    return str(Path(found.data_directory) / SERVICE_DIR)


def _without_ours(found: Found) -> list[Line]:
    """The other services' lines. A block runs from its HiddenServiceDir to the next one."""
    kept: list[Line] = []
    ours = False
    for key, value in found.services:
        if key == "HiddenServiceDir":
            ours = value == _our_dir(found)
        if not ours:
            kept.append((key, value))
    return kept


def _is_exit(found: Found) -> bool:
    """With `auto`, tor is an exit only where a policy was asked for; with 0 its policy is ignored."""
    if found.exit_relay == "auto":
        return bool(found.exit_policy) or found.reduced_policy
    return found.exit_relay == "1"


def _current_exit(found: Found) -> tuple[Line, ...]:
    return (("ExitRelay", found.exit_relay), *(("ExitPolicy", line) for line in found.exit_policy))


def _exit_lines(found: Found, wanted: Wanted) -> tuple[Line, ...]:
    current = _without_our_accept(_current_exit(found))
    own = [line for line in current if line[0] == "ExitPolicy"] if _is_exit(found) else [("ExitPolicy", "reject *:*")]
    return (("ExitRelay", "1"), ("ExitPolicy", f"accept {VIRTUAL_ADDRESS}:{wanted.exit_port}"), *own)


def _without_our_accept(lines: Iterable[Line]) -> tuple[Line, ...]:
    return tuple(line for line in lines if not line[1].startswith(f"accept {VIRTUAL_ADDRESS}:"))


def _change(found: Found, services: tuple[Line, ...], exit_lines: tuple[Line, ...]) -> Change:
    lines: list[tuple[str, str | None]] = []
    removed: list[str] = []
    added: list[str] = []
    for before, after, keys in (
        (_comparable(found.services), _comparable(services), ("HiddenServiceDir",)),
        (_current_exit(found), exit_lines, _EXIT_OPTIONS),
    ):
        if before == after:
            continue
        removed += [f"{key} {value}" for key, value in before if (key, value) not in after]
        added += [f"{key} {value}" for key, value in after if (key, value) not in before]
        lines += after
        lines += [(key, None) for key in keys if key not in {line[0] for line in after}]
    return Change(tuple(lines), tuple(removed), tuple(added))


def _comparable(lines: Iterable[Line]) -> tuple[Line, ...]:
    """tor leaves out HiddenServiceVersion 3 when asked: it is the only version there is."""
    return tuple(line for line in lines if line != ("HiddenServiceVersion", "3"))


def _split(line: str) -> Line:
    key, _, value = line.partition("=")
    return key, value


def _one(tor: Tor, key: str) -> str:
    values = tor.get_conf(key)
    return values[0] if values else ""
