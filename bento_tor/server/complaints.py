"""The last warnings and errors of this process's log, kept in memory for `bento-tor status`.

They are in the log already, with their times; nothing is written that was not.
"""

from __future__ import annotations

import logging
from collections import deque

import msgspec

_KEPT = 5
_MOST_CHARS = 300


class Complaint(msgspec.Struct, frozen=True):
    """One line of the log. `at`: seconds since the epoch."""

    at: int
    text: str


class Complaints(logging.Handler):
    """Keeps the newest few."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: deque[Complaint] = deque(maxlen=_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, under this handler's lock."""
        text = record.getMessage()
        if record.exc_info is not None and (kind := record.exc_info[0]) is not None:
            text = f"{text} ({kind.__name__})"
        self._last.append(Complaint(int(record.created), text[:_MOST_CHARS]))

    @property
    def last(self) -> tuple[Complaint, ...]:
        """Oldest first."""
        return tuple(self._last)

    def attach(self) -> None:
        """Hear of everything of ours."""
        logging.getLogger("bento_tor").addHandler(self)

    def detach(self) -> None:
        """Hear no more."""
        logging.getLogger("bento_tor").removeHandler(self)
