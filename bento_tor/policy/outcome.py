"""How a session ended: the words that travel, and the one rule that finds them.

`returned`, `raised` and `exited:N` are the function's own word, carried by the driver's frames and therefore
forgeable. `crashed:SIGNAL`, `killed:*` and `lost` are seen from outside, and override it. Pure: who looks,
and how, is the sandbox's business.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from bento_tor.errors import RemoteProtocolError

MAX_DETAIL_CHARS = 2 * 1024
# What a shell and bubblewrap add to a signal's number to make an exit status of it.
SIGNAL_STATUS = 128


class Kind(StrEnum):
    """The ways to end. The value is the word without its number."""

    RETURNED = "returned"
    RAISED = "raised"
    EXITED = "exited"
    CRASHED = "crashed"
    KILLED_MEMORY = "killed:memory"
    KILLED_TIME = "killed:time"
    KILLED_CPU = "killed:cpu"
    KILLED_OUTPUT = "killed:output"
    KILLED_POLICY = "killed:policy"
    KILLED_USER = "killed:user"
    KILLED_OPERATOR = "killed:operator"
    LOST = "lost"


_SENTENCES = {
    Kind.KILLED_MEMORY: "the function used more memory than it may",
    Kind.KILLED_TIME: "the function ran longer than it may",
    Kind.KILLED_CPU: "the function used more processor time than it may",
    Kind.KILLED_OUTPUT: "the function sent more than it may",
    Kind.KILLED_POLICY: "the function did what the box's policy forbids",
    Kind.KILLED_USER: "the session's user ended it",
    Kind.KILLED_OPERATOR: "the box's operator ended the session",
    Kind.LOST: "the box lost the session",
}
KILLS = frozenset(kind for kind in Kind if kind.value.startswith("killed:"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `number` is the exit status or the signal, for the two kinds that have one."""

    kind: Kind
    detail: str = ""
    number: int | None = None

    @classmethod
    def returned(cls) -> Outcome:
        """The function came to its end."""
        return cls(Kind.RETURNED)

    @classmethod
    def raised(cls, traceback: str) -> Outcome:
        """It raised an exception that it did not catch; `traceback` is cut to what may travel."""
        return cls(Kind.RAISED, traceback[:MAX_DETAIL_CHARS])

    @classmethod
    def exited(cls, status: int) -> Outcome:
        """It left by sys.exit or os._exit with `status` (0 to 255)."""
        return cls(Kind.EXITED, f"the function exited with status {status}", status)

    @classmethod
    def crashed(cls, number: int) -> Outcome:
        """The interpreter died of signal `number`."""
        return cls(Kind.CRASHED, f"the function's interpreter died of {_signal_name(number)}", number)

    @classmethod
    def killed(cls, kind: Kind) -> Outcome:
        """It was ended from outside, for the reason `kind` (one of KILLS)."""
        return cls(kind, _SENTENCES[kind])

    @classmethod
    def lost(cls, detail: str = "") -> Outcome:
        """The machinery failed under it."""
        return cls(Kind.LOST, (detail or _SENTENCES[Kind.LOST])[:MAX_DETAIL_CHARS])

    @classmethod
    def parse(cls, word: str, detail: str = "") -> Outcome:
        """Read what travelled. Raises RemoteProtocolError where there is no such word."""
        stem, _, suffix = word.partition(":")
        if stem == Kind.EXITED and suffix.isascii() and suffix.isdigit() and len(suffix) <= 3:
            return cls(Kind.EXITED, detail, int(suffix))
        if stem == Kind.CRASHED and (number := _signal_number(suffix)) is not None:
            return cls(Kind.CRASHED, detail, number)
        if word in _WHOLE_WORDS:
            return cls(Kind(word), detail)
        raise RemoteProtocolError(f"the box reports an outcome that does not exist: {word[:40]!r}")

    @property
    def word(self) -> str:
        """What travels, like `returned`, `exited:3`, `crashed:SIGSEGV`, `killed:time`."""
        if self.kind is Kind.EXITED:
            return f"{self.kind}:{self.number}"
        if self.kind is Kind.CRASHED:
            return f"{self.kind}:{_signal_name(self.number or 0)}"
        return self.kind.value

    @property
    def succeeded(self) -> bool:
        """Whether the function did what it was asked to, by its own word, and nobody had to stop it."""
        return self.kind is Kind.RETURNED or (self.kind is Kind.EXITED and self.number == 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen from outside. `status`: 0 to 255, with 128 + N for signal N. `killed`: why we ended
    it."""

    status: int
    killed: Kind | None = None


def judge(said: Outcome | None, seen: Seen | None, *, ready: bool = True) -> Outcome:
    """The outcome: the function's word `said` where what was `seen` from outside agrees with it.

    `said` is None where its frames held no last word; `ready` is whether the driver ever reported; `seen` is
    None where the keeper itself is gone."""
    if seen is None:
        return Outcome.lost()
    if seen.killed is not None:
        return Outcome.killed(seen.killed)
    if not ready:
        return Outcome.lost("the sandbox did not start")
    if said is not None and seen.status == _status_of(said):
        return said
    # A forged last word does not hide how the process ended.
    if SIGNAL_STATUS < seen.status <= SIGNAL_STATUS + signal.SIGRTMAX:
        return Outcome.crashed(seen.status - SIGNAL_STATUS)
    return Outcome.exited(seen.status)


def _status_of(said: Outcome) -> int | None:
    """The exit status with which the driver follows up each word."""
    if said.kind is Kind.EXITED:
        return said.number
    return {Kind.RETURNED: 0, Kind.RAISED: 1}.get(said.kind)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _signal_number(name: str) -> int | None:
    for number in range(1, signal.SIGRTMAX + 1):
        if name == _signal_name(number):
            return number
    return None


_WHOLE_WORDS = frozenset(kind.value for kind in Kind) - {Kind.EXITED.value, Kind.CRASHED.value}
