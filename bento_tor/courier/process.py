"""The courier's process: gives up every right, then serves until the keeper or the box hangs up.

Its user id is its own. It can reach tor's SOCKS port, and nothing that needs more than being on this machine; its
workers (worker.py) not even that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass

from bento_tor.courier.courier import Courier, Settings
from bento_tor.courier.errand import Reach
from bento_tor.egress import grants
from bento_tor.egress.grants import Ended, Listener
from bento_tor.egress.process import become, hear_packets, keep_only
from bento_tor.sandbox.jail import functions_cpus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """A courier that runs. `keeper` and `box`: our ends of its lines (egress/link.py). Either's closing ends it."""

    pid: int
    keeper: socket.socket
    box: socket.socket


def start(settings: Settings, reach: Reach, filter_: bytes, *, uid: int | None) -> Started:
    """Fork the courier: by the keeper, before it has threads or secrets. `filter_`: the system calls of its workers.

    As for egress/process.py's: each process closes the line that is not its own, and the caller waits for `pid`."""
    keeper, theirs_keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    box, theirs_box = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the keeper, whose end we see
            keep_only(theirs_keeper.fileno(), theirs_box.fileno())
            os.sched_setaffinity(0, functions_cpus())  # it works for functions, and leaves tor what they leave
            become(uid)
            asyncio.run(_serve(theirs_keeper, theirs_box, Courier(settings, reach, filter_)))
            status = 0
        except Exception:
            log.exception("the courier broke")
        finally:
            os._exit(status)
    theirs_keeper.close()
    theirs_box.close()
    return Started(pid, keeper, box)


async def _serve(keeper: socket.socket, box: socket.socket, courier: Courier) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    hear_keeper = hear_packets(keeper, ended, lambda packet, fds: _hear_keeper(courier, packet, fds))

    def hear_box(packet: bytes, fds: list[int]) -> bool:
        # What the keeper said before the box could know of it is read before the box.
        while not ended.is_set() and select.select([keeper], [], [], 0)[0]:
            hear_keeper()
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


def _hear_keeper(courier: Courier, packet: bytes, fds: list[int]) -> bool:
    message = grants.maybe_from_keeper(packet)
    if isinstance(message, Listener) and len(fds) == 1:
        courier.listen(message.number, socket.socket(fileno=fds.pop()))
        return True
    if isinstance(message, Ended):
        courier.end(message.number)
        return True
    return False
