"""The two lines to the broker: the keeper's, and the box's. Each is one end of a SOCK_SEQPACKET pair.

Neither waits for the broker, but for its word that new rules hold: a packet that does not fit is lost, and what
depends on it stays closed.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from bento_tor.egress import grants
from bento_tor.egress.grants import Ended, FromBroker, Grant, Listener, Rules

log = logging.getLogger(__name__)

_RULED_S = 5.0


class KeeperLine:
    """For the keeper: hands over listening sockets, states the rules."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._stated = 0

    def offer(self, number: int, listener: socket.socket) -> None:
        """Session `number` runs behind this listening socket. The caller closes its copy."""
        with suppress(OSError):  # the broker has gone: who connects is refused
            socket.send_fds(self._sock, [grants.encode(Listener(number))], [listener.fileno()])

    def end(self, number: int) -> None:
        """Session `number` is over."""
        with suppress(OSError):
            self._sock.send(grants.encode(Ended(number)))

    def set_rules(self, rules: Rules) -> bool:
        """State what `exit` egress may reach, and wait until it does hold. False: the broker did not take it, or has
        gone. One thread at a time."""
        self._stated += 1
        packet = grants.encode(msgspec.structs.replace(rules, number=self._stated))
        if len(packet) > grants.MAX_PACKET_BYTES:
            log.error("the exit policy is too long to be handed on: egress is closed")
            packet = grants.encode(Rules(None, number=self._stated))
        try:
            self._sock.send(packet)
        except OSError:
            return False
        return self._is_ruled()

    def close(self) -> None:
        """Hang up: the broker ends."""
        self._sock.close()

    def _is_ruled(self) -> bool:
        """Late answers to earlier statements pass by: they say nothing of this one."""
        poll, deadline = select.poll(), time.monotonic() + _RULED_S
        poll.register(self._sock, select.POLLIN)
        try:
            while (left_s := deadline - time.monotonic()) > 0 and poll.poll(left_s * 1000):
                packet = self._sock.recv(grants.MAX_PACKET_BYTES)
                if not packet or grants.is_ruled(packet, self._stated):
                    return bool(packet)
        except OSError:
            pass
        return False


class BoxLine:
    """For the box, in its event loop: grants, and what the broker tells."""

    def __init__(self, sock: socket.socket, hear: Callable[[FromBroker], None] = lambda message: None) -> None:
        self._sock = sock
        self._hear = hear
        self._open = False

    def open(self) -> None:
        """Start listening, in the running event loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._receive)
        self._open = True

    def close(self) -> None:
        """Hang up: the broker ends."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def grant(self, grant: Grant) -> bool:
        """Let a session's traffic out. False: the broker did not take it, and nothing will get out."""
        try:
            self._sock.send(grants.encode(grant))
        except OSError:
            return False
        return True

    def _receive(self) -> None:
        try:
            packet = self._sock.recv(grants.MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        message = grants.maybe_from_broker(packet)
        if message is not None:
            self._hear(message)
        else:
            if packet:
                log.warning("the egress broker says what it never says: no more is heard of it")
            self.close()
