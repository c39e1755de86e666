"""How a box and its tor are, as one value: what `bento-tor status` shows.

The box tells of itself by the verb `status`; tor is asked by whoever looks, so that each is seen when the other is
down. For the operator only, and for now: what is kept (metrics, audit) is rounded, this is not.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from bento_tor.controller.condition import Condition, read_condition
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.errors import BentoError, TorError
from bento_tor.policy.limits import Limits
from bento_tor.server import operator
from bento_tor.server.complaints import Complaint
from bento_tor.server.state import maybe_relay

_ASK_S = 5.0


class Facts(msgspec.Struct, frozen=True):
    """What does not change while a box runs. `owner`: who puts its onion service up (see serve.Serving); `control`,
    `relay`: where the tors are that it needs (empty: wherever one is found); `enforced`: what cgroups limit."""

    address: str = ""
    port: int = 80
    owner: str = "nobody"
    socket: str = ""
    control: str = ""
    relay: str = ""
    enforced: tuple[str, ...] = ()
    metrics: str = ""


class Use(msgspec.Struct, frozen=True):
    """So many, of at most so many."""

    now: int
    most: int


class Pool(msgspec.Struct, frozen=True):
    """Sandboxes that wait ready, of at most `most`; how many starts have found one, and how many not."""

    ready: int
    most: int
    hits: int
    cold: int


class BoxStatus(msgspec.Struct, frozen=True):
    """A box that runs. `began`: seconds since the epoch; `counts`: since then, in full hours and rounded unless
    `exact`, by `kind word`."""

    facts: Facts
    began: int
    paused: bool
    draining: bool
    sessions: Use
    waiting: int
    functions: Use
    connections: Use
    spool_bytes: Use
    pool: Pool
    limits: Limits
    egress: tuple[str, ...]
    exact: bool
    counts: dict[str, int]
    complaints: tuple[Complaint, ...]


class TorStatus(msgspec.Struct, frozen=True):
    """A tor that a box needs. `job`: `onion` (it has its service), `exit` (its relay's policy is obeyed); `why`: it
    cannot be asked."""

    job: str
    maybe_condition: Condition | None
    why: str = ""
    hint: str = ""


class Status(msgspec.Struct, frozen=True):
    """All that was seen. `why`: of a box that does not run, or does not answer."""

    at: int
    folder: str
    maybe_box: BoxStatus | None
    why: str
    tors: tuple[TorStatus, ...]

    @property
    def needs_tor(self) -> bool:
        """Whether without tor nobody comes to this box, or nothing goes out. One that does not run is asked for its
        set-up."""
        if self.maybe_box is None:
            return maybe_relay(Path(self.folder)) is not None
        return self.maybe_box.facts.owner != "nobody" or "exit" in self.maybe_box.egress


def look(folder: Path, maybe_control: Endpoint | None = None) -> Status:
    """See the box in `folder`, and its tors; `maybe_control`: where tor is, whatever the box says. Raises ConfigError
    where the folder's own record cannot be read."""
    maybe_box, why = _ask(folder)
    facts = maybe_box.facts if maybe_box is not None else _facts_of_set_up(folder)
    control = str(maybe_control) if maybe_control is not None else facts.control
    tors = [_look_at_tor("onion", control, facts.address if facts.owner != "nobody" else "")]
    if facts.relay and facts.relay != control:
        tors.append(_look_at_tor("exit", facts.relay, ""))
    return Status(int(time.time()), str(folder), maybe_box, why, tuple(tors))


def _ask(folder: Path) -> tuple[BoxStatus | None, str]:
    try:
        told: dict[str, Any] | None = operator.maybe_ask(folder / "operator.sock", "status", timeout_s=_ASK_S)
        if told is None:
            return None, f"no box runs in {folder}"
        return msgspec.convert(told, BoxStatus, strict=False), ""
    except BentoError as error:
        return None, error.message
    except msgspec.ValidationError as why:
        return None, f"the box is of another version: {why}"


def _facts_of_set_up(folder: Path) -> Facts:
    record = maybe_relay(folder)
    if record is None:
        return Facts()
    return Facts(record.address, record.port, "relay", control=record.control)


def _look_at_tor(job: str, control: str, address: str) -> TorStatus:
    try:
        with connect(Endpoint.parse(control) if control else None, timeout_s=_ASK_S) as tor:
            return TorStatus(job, read_condition(tor, address))
    except TorError as error:
        return TorStatus(job, None, error.message, error.hint)
