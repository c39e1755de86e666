"""The broker's process: gives up every right, then serves until the keeper or the box hangs up.

It holds three things: its line to the keeper, its line to the box, and its own connections. It runs under a user id
that nothing else has, because the kernel's rules (nft.py) know it by that.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from bento_tor.egress import grants
from bento_tor.egress.broker import Broker, Settings
from bento_tor.egress.grants import Ended, Event, FromBroker, Listener, Noted, Ruled
from bento_tor.egress.host import own_addresses

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
# A connection has two ends here, and a session some dozens of connections.
_OPEN_FILES = 8192
_REFRESH_S = 30.0
# Read by the C library when it first asks for a name: two servers' silence must not hold a thread for half a minute.
_RESOLVER_OPTIONS = "timeout:2 attempts:2"


@dataclass(frozen=True, slots=True)
class Started:
    """A process beside the box that runs. `keeper` and `box`: our ends of its lines (link.py). It ends when either is
    closed."""

    pid: int
    keeper: socket.socket
    box: socket.socket


class Serving(Protocol):
    """What serves sessions behind doors, which the keeper shows."""

    def listen(self, number: int, door: socket.socket) -> None:
        """Session `number` runs behind this door."""

    def end(self, number: int) -> None:
        """That session is over."""


def start(settings: Settings, *, uid: int | None) -> Started:
    """Fork the broker. `uid`: the user that the broker becomes. See `start_apart`."""
    return start_apart("egress broker", lambda keeper, box: run(keeper, box, settings, uid=uid))


def start_apart(name: str, work: Callable[[socket.socket, socket.socket], None]) -> Started:
    """Fork a process for `work`, which gets its ends of the lines: by the keeper, before it has threads or secrets.

    `box` is for the box's process: the keeper closes its copy once that has been forked, and the box that of `keeper`,
    else neither line would ever end. The caller waits for `pid`."""
    keeper, theirs_keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    box, theirs_box = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the keeper, whose end we see
            work(theirs_keeper, theirs_box)
            status = 0
        except Exception:
            log.exception("the %s broke", name)
        finally:
            os._exit(status)
    theirs_keeper.close()
    theirs_box.close()
    return Started(pid, keeper, box)


def run(keeper: socket.socket, box: socket.socket, settings: Settings, *, uid: int | None) -> None:
    """Be the broker, in a process that was forked for it, before there are threads. `uid`: the user to become.

    Returns when the keeper or the box has hung up, or says what neither ever says."""
    keep_only(keeper.fileno(), box.fileno())
    become(uid)
    os.environ["RES_OPTIONS"] = _RESOLVER_OPTIONS
    asyncio.run(serve(keeper, box, settings))


async def serve(keeper: socket.socket, box: socket.socket, settings: Settings) -> None:
    """The same in the process and under the user that there is."""
    ended = asyncio.Event()
    box.setblocking(False)

    def tell(message: FromBroker) -> None:
        with suppress(OSError):  # a box that does not read what it is told loses it
            box.send(grants.encode(message))

    def note(number: int, event: Event) -> None:
        tell(Noted(number, event))

    broker = Broker(settings, own_addresses=own_addresses, note=note, carried=tell)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    hear_packets(keeper, ended, lambda packet, fds: _hear_keeper(broker, keeper, packet, fds))
    hear_packets(box, ended, lambda packet, fds: _hear_box(broker, packet))
    refreshing = asyncio.create_task(_refresh(broker))
    try:
        await ended.wait()
    finally:
        refreshing.cancel()
        for sock in (keeper, box):
            loop.remove_reader(sock)
        await broker.close()


def hear_packets(
    sock: socket.socket, ended: asyncio.Event, hear: Callable[[bytes, list[int]], bool]
) -> Callable[[], None]:
    """Hand every packet of `sock` to `hear`; False, or the other end's hanging up, ends everything.

    Gives what takes the next one now, if it is there."""

    def receive() -> None:
        fds: list[int] = []
        try:
            packet, fds, _, _ = socket.recv_fds(sock, grants.MAX_PACKET_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        heard = bool(packet) and hear(packet, fds)
        for fd in fds:
            with suppress(OSError):  # closed or taken by whoever heard it
                os.close(fd)
        if not heard:
            if packet:
                log.warning("a packet that is none: the egress broker ends")
            ended.set()

    sock.setblocking(False)
    asyncio.get_running_loop().add_reader(sock, receive)
    return receive


def _hear_keeper(broker: Broker, keeper: socket.socket, packet: bytes, fds: list[int]) -> bool:
    message = grants.maybe_from_keeper(packet)
    if isinstance(message, Listener):
        if len(fds) != 1:
            return False
        broker.listen(message.number, socket.socket(fileno=fds.pop()))
    elif isinstance(message, Ended):
        broker.end(message.number)
    elif message is not None:
        broker.set_rules(message)
        with suppress(OSError):  # a keeper that waits no more needs no answer
            keeper.send(grants.encode(Ruled(message.number)))
    return message is not None


def hear_keeper(serving: Serving, packet: bytes, fds: list[int]) -> bool:
    """A packet of the keeper's to who serves sessions and has no rules. False: it is none."""
    message = grants.maybe_from_keeper(packet)
    if isinstance(message, Listener) and len(fds) == 1:
        serving.listen(message.number, socket.socket(fileno=fds.pop()))
        return True
    if isinstance(message, Ended):
        serving.end(message.number)
        return True
    return False


def _hear_box(broker: Broker, packet: bytes) -> bool:
    grant = grants.maybe_grant(packet)
    if grant is not None:
        broker.grant(grant)
    return grant is not None


async def _refresh(broker: Broker) -> None:
    while True:
        await asyncio.sleep(_REFRESH_S)
        broker.refresh()


def keep_only(*kept: int) -> None:
    """Close every other descriptor: what the keeper had open is none of a network program's business."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def become(uid: int | None, *, maybe_group: int | None = None) -> None:
    """Give up every right, for good; with that one group besides its own, where there is one. None: stay who we are."""
    libc = ctypes.CDLL(None)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if uid is not None:
        os.setgroups([] if maybe_group is None else [maybe_group])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # After the change of user, which clears both.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
