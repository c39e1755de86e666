"""The courier's process: gives up every right, then serves until the keeper or the box hangs up.

Its user id is its own. It can reach tor's SOCKS port, and nothing that needs more than being on this machine; its
workers (worker.py) not even that.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import suppress

from bento_tor.courier.courier import Courier, Settings
from bento_tor.courier.errand import Reach
from bento_tor.egress import grants
from bento_tor.egress.process import Started, become, hear_keeper, hear_packets, keep_only, start_apart
from bento_tor.sandbox.jail import functions_cpus


def start(settings: Settings, reach: Reach, filter_: bytes, *, uid: int | None) -> Started:
    """Fork the courier. `filter_`: the system calls of its workers. See egress/process.py's `start_apart`."""

    def run(keeper: socket.socket, box: socket.socket) -> None:
        keep_only(keeper.fileno(), box.fileno())
        os.sched_setaffinity(0, functions_cpus())  # it works for functions, and leaves tor what they leave
        become(uid)
        asyncio.run(_serve(keeper, box, Courier(settings, reach, filter_)))

    return start_apart("courier", run)


async def _serve(keeper: socket.socket, box: socket.socket, courier: Courier) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    hear_now = hear_packets(keeper, ended, lambda packet, fds: hear_keeper(courier, packet, fds))

    def hear_box(packet: bytes, fds: list[int]) -> bool:
        # What the keeper said before the box could know of it is read before the box.
        while not ended.is_set() and select.select([keeper], [], [], 0)[0]:
            hear_now()
        grant = grants.maybe_grant(packet)
        if grant is not None:
            courier.allow(grant)
        return grant is not None

    hear_packets(box, ended, hear_box)
    try:
        await ended.wait()
    finally:
        for sock in (keeper, box):
            with suppress(OSError):
                loop.remove_reader(sock)
        await courier.close()
