"""DIR/network.json: what a network consists of and which processes run it, written before anybody needs it.

Whoever finds the file can look after the network, also when the process that started it was killed. Each
write replaces the whole file at once, so that a reader never sees half of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bento_tor.controller.processes import ProcessId
from bento_tor.errors import ConfigError
from bento_tor.network.plan import NetworkSettings, Node

STATE_FILE = "network.json"
_VERSION = 1


class Timings(msgspec.Struct, frozen=True):
    """Seconds from the call of `up`."""

    keygen_s: float = 0.0
    circuits_s: float = 0.0
    first_reply_s: float = 0.0
    ready_s: float = 0.0


class Extra(msgspec.Struct, frozen=True):
    """A process that belongs to the network and is no tor, and the directory that goes with it."""

    name: str
    process: ProcessId
    directory: Path | None = None


class State(msgspec.Struct, frozen=True):
    """All of network.json. `created`: the directories that did not exist before, outermost first."""

    settings: NetworkSettings
    nodes: tuple[Node, ...]
    created: tuple[Path, ...] = ()
    processes: dict[str, ProcessId] = {}
    extras: tuple[Extra, ...] = ()
    ready: bool = False
    timings: Timings = Timings()
    version: int = _VERSION


def claim(directory: Path, state: State) -> None:
    """Write the first state; the file must not exist. Raises ConfigError where it does, OSError."""
    try:
        with (directory / STATE_FILE).open("xb"):
            pass
    except FileExistsError as why:
        raise ConfigError(f"there is a network in {directory} already", hint=_hint("down", directory)) from why
    save(directory, state)


def save(directory: Path, state: State) -> None:
    """Replace the state. Raises OSError."""
    temporary = directory / f"{STATE_FILE}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state, enc_hook=_encode), indent=2) + b"\n")
    temporary.replace(directory / STATE_FILE)


def maybe_load(directory: Path) -> State | None:
    """The state of the network in `directory`; None where there is none. Raises ConfigError for an unreadable
    one."""
    path = directory / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State, dec_hook=_decode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as why:
        raise ConfigError(f"{path} cannot be read: {why.strerror}") from why
    except msgspec.MsgspecError as why:
        raise ConfigError(f"{path} is not what bento-tor wrote: {why}") from why


def load(directory: Path) -> State:
    """The same; ConfigError where there is none."""
    state = maybe_load(directory)
    if state is None:
        raise ConfigError(f"there is no network in {directory}", hint=_hint("up", directory))
    return state


def remove(directory: Path) -> None:
    """Forget the network. Raises OSError."""
    for name in (STATE_FILE, f"{STATE_FILE}.new"):
        (directory / name).unlink(missing_ok=True)


def _hint(verb: str, directory: Path) -> str:
    return f"bento-tor network {verb} --dir {directory}"


def _encode(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
