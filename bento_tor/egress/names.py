"""Names to addresses, for one session: a cache of its own, and a limit to how much may be asked.

Never shared between sessions, nor with the relay: from a shared cache a function could time what others visit. And
the DNS is a way out itself, so the number of questions is capped.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import Executor

from bento_tor.policy.exit_policy import IPAddress

# Cached answers live this long, and this many new names may be asked for in that time.
WINDOW_S = 600.0
WINDOW_NAMES = 256
# One session's names that nobody answers must not take all of the pool's threads.
_AT_ONCE = 4
_MAX_ANSWERS = 16


class Names:
    """One session's resolver. `pool`: threads for getaddrinfo, which blocks."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._known: dict[str, asyncio.Task[tuple[IPAddress, ...]]] = {}
        self._since = time.monotonic()

    def may_ask(self, name: str) -> bool:
        """Whether it is known, or may still be asked for."""
        self._forget_old()
        return name in self._known or len(self._known) < WINDOW_NAMES

    async def resolve(self, name: str) -> tuple[IPAddress, ...]:
        """All addresses of a name, in the resolver's order; none where there are none. `name` is a canonical one
        (policy.destinations.maybe_name)."""
        if name not in self._known:
            self._known[name] = asyncio.create_task(self._ask(name))
        # Shielded: a function that hangs up and asks again must not have more questions running than it may.
        return await asyncio.shield(self._known[name])

    def close(self) -> None:
        """Ask nothing more."""
        for task in self._known.values():
            task.cancel()

    async def _ask(self, name: str) -> tuple[IPAddress, ...]:
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(self._pool, look_up, name)

    def _forget_old(self) -> None:
        if time.monotonic() - self._since > WINDOW_S:
            self._since = time.monotonic()
            self._known = {name: task for name, task in self._known.items() if not task.done()}


def look_up(name: str) -> tuple[IPAddress, ...]:
    """Ask the system's resolver, and wait. The dot at the end: no search list, so no name of the operator's LAN.

    As bytes: for text Python would import a codec, from where the broker's user may not read."""
    try:
        found = socket.getaddrinfo(f"{name}.".encode("ascii"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    texts = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
    return tuple(ipaddress.ip_address(text) for text in texts)[:_MAX_ANSWERS]
