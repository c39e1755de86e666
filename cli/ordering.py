"""What the commands share that give orders to a box: which box, whether it runs, and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bento_tor.errors import BentoError, ConfigError, ConnectError

F = TypeVar("F", bound=Callable[..., Any])

# After its last answer a box still ends its sandboxes and takes its rules away.
_END_S = 60.0
_LOOK_S = 0.1


def state_option(command: F) -> F:
    """`--state`: the folder of the box that is meant."""
    return click.option("--state", metavar="DIR", type=click.Path(path_type=Path), help="The box's state folder.")(
        command
    )


def box_folder(state: Path | None) -> Path:
    """The box's folder: the one that was named, else the default one."""
    from bento_tor.config import data_dir

    return (state or data_dir() / "box").absolute()


def order(folder: Path, verb: str, *words: str) -> dict[str, Any]:
    """Give an order to the running box. Raises ConfigError where none runs, or it refuses."""
    from bento_tor.server import operator

    answer = operator.maybe_ask(folder / "operator.sock", verb, *words)
    if answer is None:
        raise ConfigError(f"no box runs in {folder}", hint="name the folder of yours with --state")
    return answer


def maybe_state(folder: Path) -> dict[str, Any] | None:
    """How the box stands; None where it has ended. Raises ConnectError where it does neither answer nor end."""
    from bento_tor.server import operator

    try:
        return operator.maybe_ask(folder / "operator.sock", "state")
    except ConnectError:
        # It ended while it was asked; or it hangs, and then it still holds its folder.
        if not has_ended(folder, within_s=_END_S):
            raise
        return None


def wait_for_end(folder: Path) -> None:
    """Until nothing of the box runs. Raises BentoError where that takes too long."""
    if not has_ended(folder, within_s=_END_S):
        raise BentoError(f"the box in {folder} has not ended", hint="its log says why; kill its process if it hangs")


def has_ended(folder: Path, *, within_s: float) -> bool:
    """Whether no process of a box uses the folder, now or after a while."""
    from bento_tor.server.state import is_in_use

    deadline = time.monotonic() + within_s
    while is_in_use(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def counted(count: int, thing: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
