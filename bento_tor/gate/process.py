"""The gate's process: connects to tor, gives up every right, then serves until the keeper or the box hangs up.

Its user id is its own. Where tor lets a group in (Debian: debian-tor), the gate has that group, so that it can connect
again when tor has been away; the box's own process is in no group of tor's.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import suppress

from bento_tor.controller.endpoints import Endpoint
from bento_tor.egress.process import Started, become, hear_keeper, hear_packets, keep_only, start_apart
from bento_tor.errors import BentoError, TorError
from bento_tor.gate import words
from bento_tor.gate.control import Control
from bento_tor.gate.gate import Gate, Settings
from bento_tor.gate.words import Allow, Declined, Told

_START_S = 30.0
_READY = b"\0"


def start(settings: Settings, *, uid: int | None) -> Started:
    """Fork the gate. `uid`: the user that the gate becomes. See egress/process.py's `start_apart`.

    Returns when it has reached its tor. Raises TorError where that tor cannot be used."""
    started = start_apart("gate", lambda keeper, box: run(keeper, box, settings, uid=uid))
    try:
        _await_ready(started.keeper)
    except BaseException:
        started.keeper.close()
        started.box.close()
        os.waitpid(started.pid, 0)
        raise
    return started


def run(keeper: socket.socket, box: socket.socket, settings: Settings, *, uid: int | None) -> None:
    """Be the gate, in a process that was forked for it. `uid`: the user to become; None: it stays who it is."""
    keep_only(keeper.fileno(), box.fileno())
    become(None)
    try:
        asyncio.run(_serve(keeper, box, settings, uid))
    except BentoError as why:
        with suppress(OSError):
            keeper.send(why.message.encode()[:1000])


async def _serve(keeper: socket.socket, box: socket.socket, settings: Settings, uid: int | None) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    gates: list[Gate] = []

    def later(what: str, *values: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: [getattr(gate, what)(*values) for gate in gates])

    endpoint = Endpoint.parse(settings.control)
    # While we may: as root any tor of this machine's lets us in.
    control = Control(endpoint, lambda address: later("uploaded", address), lambda: later("lost"))
    become(uid, maybe_group=_maybe_tors_group(endpoint))
    gate = Gate(settings, control, lambda answer: _tell(box, answer))
    gates.append(gate)
    control.start()
    await gate.open()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    hear_now = hear_packets(keeper, ended, lambda packet, fds: hear_keeper(gate, packet, fds))

    def hear_box(packet: bytes, fds: list[int]) -> bool:
        # What the keeper said before the box could know of it is read before the box.
        while not ended.is_set() and select.select([keeper], [], [], 0)[0]:
            hear_now()
        return _hear_box(gate, packet)

    hear_packets(box, ended, hear_box)
    keeper.send(_READY)
    try:
        await ended.wait()
    finally:
        for sock in (keeper, box):
            loop.remove_reader(sock)
        await gate.close()


def _await_ready(keeper: socket.socket) -> None:
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    said = keeper.recv(2000) if poll.poll(_START_S * 1000) else b""
    if said != _READY:
        why = said.decode(errors="replace") or "it ended, or did not answer"
        raise TorError(
            f"the gate to tor cannot be opened: {why}",
            hint="gate_control names the control port of the box's own tor; or offer no Tor routines",
        )


def _hear_box(gate: Gate, packet: bytes) -> bool:
    message = words.maybe_from_box(packet)
    if isinstance(message, Allow):
        gate.allow(message)
    elif message is not None:
        gate.ask(message)
    return message is not None


def _tell(box: socket.socket, answer: Told | Declined) -> None:
    with suppress(OSError):  # a box that does not read its answers loses them
        box.send(words.encode(answer))


def _maybe_tors_group(endpoint: Endpoint) -> int | None:
    """The group that may use its control socket; never root's."""
    if endpoint.path is None:
        return None
    try:
        found = endpoint.path.stat()
    except OSError:
        return None
    return found.st_gid if found.st_gid and found.st_mode & 0o020 else None
