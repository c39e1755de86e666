"""Destinations that the operator has blocked since the policy was written: a file in the state folder, a line for each.

A line is a destination and no rule: it is read as `reject`, so whatever gets into the file can narrow what functions
reach, and never widen it. The operator's command writes it, the keeper reads it; the box's process, which parses
strangers' bytes, can do neither.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bento_tor.errors import BentoError, ConfigError
from bento_tor.policy.destinations import maybe_address, parse_operator
from bento_tor.policy.exit_policy import Rule

_NAME = "blocked"
# All of them travel to the broker in one packet, with the relay's exit policy.
MOST = 500


def canonical(text: str) -> str:
    """The one spelling of ADDRESS[/LEN][:PORTS]; an IPv6 address may stand without brackets. Raises ConfigError."""
    address = maybe_address(text)
    if address is not None and address.version == 6 and not text.startswith("["):
        text = f"[{text}]"
    try:
        rules = parse_operator([f"reject {text}"])
    except ConfigError as why:
        raise ConfigError(
            f"{text[:80]!r} cannot be blocked: it is no address",
            hint="give ADDRESS, ADDRESS/LEN or either with :PORT; a name has addresses of its own, block those",
        ) from why
    return f"*{_ports(rules[0])}" if len(rules) > 1 else _spell(rules[0])


def read(state: Path) -> tuple[str, ...]:
    """What is blocked, oldest first. Raises ConfigError: a list that cannot be read must not count as an empty one."""
    path = state / _NAME
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return tuple(canonical(line) for line in lines)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as why:
        raise ConfigError(f"{path} cannot be read: {why}") from why
    except ConfigError as why:
        raise ConfigError(f"{path} cannot be used: {why.message}", hint="a line is ADDRESS[/LEN][:PORT]") from why


def rules(state: Path) -> tuple[str, ...]:
    """The same as lines of the operator's, to stand before those of the policy. Raises ConfigError."""
    return tuple(f"reject {text}" for text in read(state))


def add(state: Path, text: str) -> bool:
    """Block it from the next reading on. False: it was blocked already. Raises ConfigError."""
    with _locked(state):
        blocked = read(state)
        if text in blocked:
            return False
        if len(blocked) >= MOST:
            raise ConfigError(f"{MOST} destinations are blocked already", hint="block the network that they share")
        _write(state, (*blocked, text))
        return True


def remove(state: Path, text: str) -> None:
    """Block it no more. Raises ConfigError where it is not blocked."""
    with _locked(state):
        blocked = read(state)
        if text not in blocked:
            raise ConfigError(f"{text} is not blocked", hint="'bento-tor policy blocked' lists what is")
        _write(state, tuple(each for each in blocked if each != text))


def _spell(rule: Rule) -> str:
    network = rule.network
    alone = network.prefixlen == network.max_prefixlen
    host = str(network.network_address) if network.version == 4 else f"[{network.network_address}]"
    return f"{host}{'' if alone else f'/{network.prefixlen}'}{_ports(rule)}"


def _ports(rule: Rule) -> str:
    first, last = rule.first_port, rule.last_port
    if (first, last) == (1, 65535):
        return ""
    return f":{first}" if first == last else f":{first}-{last}"


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Two commands at once must not lose each other's line. The folder itself is locked: no file for it is left."""
    try:
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as why:
        raise ConfigError(f"{state} is no box's state folder: {why.strerror}", hint="name it with --state") from why
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(state: Path, lines: tuple[str, ...]) -> None:
    """The whole file at once, on disk when it is done, readable by who owns the folder."""
    try:
        # A name that nobody can guess, opened exclusively: root may be writing into a user's folder.
        fd, name = tempfile.mkstemp(prefix=f"{_NAME}.", dir=state)
        try:
            with os.fdopen(fd, "w", encoding="ascii") as file:
                if os.geteuid() == 0:
                    owner = state.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(state / _NAME)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as why:
        raise BentoError(f"cannot write into {state}: {why.strerror}") from why
