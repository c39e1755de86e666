"""So many in an hour: of what costs tor circuits, and the network with it. Pure; time comes in as an argument."""

from __future__ import annotations

from collections import deque

_HOUR_S = 3600.0


class Hourly:
    """At most `most` in any hour."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: deque[float] = deque()

    def has_room(self, now_s: float) -> bool:
        """Whether one more may be had now."""
        while self._times and self._times[0] <= now_s - _HOUR_S:
            self._times.popleft()
        return len(self._times) < self._most

    def take(self, now_s: float) -> None:
        """One is had."""
        self._times.append(now_s)
