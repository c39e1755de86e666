"""The two ways out: straight, under the rules; and through tor. Each gives a connected socket or says why not.

What is judged is what is connected to: a name's answers are literals from here on, and nothing is resolved again
between the judgement and the connection (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bento_tor.egress import socks5
from bento_tor.egress.door import exactly
from bento_tor.egress.grants import Event
from bento_tor.egress.names import Names
from bento_tor.egress.socks5 import Reply
from bento_tor.errors import Refused, RemoteProtocolError
from bento_tor.policy.destinations import Destinations, is_onion, maybe_address, maybe_name
from bento_tor.policy.exit_policy import IPAddress, unmapped

_CONNECT_S = 10.0
# Building a circuit, and an onion service's descriptor, take their time.
_TOR_S = 120.0
_ATTEMPTS = 4
_ERRORS = {
    errno.ECONNREFUSED: Reply.REFUSED,
    errno.EHOSTUNREACH: Reply.HOST,
    errno.ENETUNREACH: Reply.NETWORK,
    errno.EADDRNOTAVAIL: Reply.NETWORK,
    errno.ETIMEDOUT: Reply.TIMEOUT,
    # The kernel's own rules (egress/nft.py).
    errno.EPERM: Reply.POLICY,
    errno.EACCES: Reply.POLICY,
}


class Denied(Refused):
    """A function's request that comes to nothing. `reply` is what it is told, `event` what the audit may know."""

    def __init__(self, reply: int, *, event: Event | None = None) -> None:
        super().__init__(f"a function's connection is answered with {reply}")
        self.reply = reply
        self.event = event


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection out. `address`: where to, where it is ours to judge again when the rules change."""

    sock: socket.socket
    address: IPAddress | None
    port: int


class Way(Protocol):
    """A way out of one session."""

    async def open(self, host: str | IPAddress, port: int) -> Opened:
        """Connect. Raises Denied."""

    def close(self) -> None:
        """It is not used any more."""


class ExitWay:
    """Straight out, under the rules that hold at that moment."""

    def __init__(self, rules: Callable[[], Destinations], names: Names) -> None:
        self._rules = rules
        self._names = names

    async def open(self, host: str | IPAddress, port: int) -> Opened:
        """Resolve, judge all answers, connect to the first accepted one that answers. Raises Denied."""
        accepted = await self._judged(host, port)
        denied = Denied(Reply.HOST)
        for address in accepted[:_ATTEMPTS]:
            try:
                sock = await _connect_to(address, port)
            except Denied as why:
                denied = why
                continue
            if self._rules().accepts(address, port):
                return Opened(sock, address, port)
            # They have changed while it was being connected; from here on a change closes it (session.py).
            sock.close()
            raise Denied(Reply.POLICY, event="refused")
        raise denied

    def close(self) -> None:
        """Ask for no more names."""
        self._names.close()

    async def _judged(self, host: str | IPAddress, port: int) -> list[IPAddress]:
        address = maybe_address(host) if isinstance(host, str) else host
        if address is not None:
            if not self._rules().accepts(unmapped(address), port):
                raise Denied(Reply.POLICY, event="refused")
            return [unmapped(address)]
        name = maybe_name(str(host))
        if name is None or is_onion(name) or not self._rules().may_accept(port):
            raise Denied(Reply.POLICY, event="refused")
        if not self._names.may_ask(name):
            raise Denied(Reply.NAMES, event="names")
        found = [unmapped(address) for address in await self._names.resolve(name)]
        # Read again: they may have changed while the resolver was waited for.
        accepted = [address for address in found if self._rules().accepts(address, port)]
        if not accepted:
            # One answer for "no such name" and "not there": else the names of the operator's LAN could be tried out.
            raise Denied(Reply.HOST, event="refused" if found else None)
        return accepted


class TorWay:
    """Through the SOCKS port of a tor, on circuits that no other session has. Nothing is resolved here."""

    def __init__(self, endpoint: str | tuple[str, int], rules: Callable[[], Destinations], *, word: str = "") -> None:
        self._endpoint = endpoint
        self._rules = rules
        # IsolateSOCKSAuth, a SocksPort's default: streams with another word go by other circuits.
        self._word = word or secrets.token_hex(16)

    async def open(self, host: str | IPAddress, port: int) -> Opened:
        """Raises Denied; tor's own answers, the extended ones of onion services included, pass through."""
        target = _for_tor(host, self._rules())
        sock = await _dial(self._endpoint)
        try:
            async with asyncio.timeout(_TOR_S):
                await self._ask(sock, target, port)
        except (OSError, TimeoutError, RemoteProtocolError) as why:
            sock.close()
            raise Denied(Reply.FAILED) from why
        except BaseException:
            sock.close()
            raise
        return Opened(sock, None, port)

    def close(self) -> None:
        """Nothing is kept."""

    async def _ask(self, sock: socket.socket, host: str | IPAddress, port: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, bytes([socks5.VERSION, 1, socks5.PASSWORD]))
        if await exactly(sock, 2) != bytes([socks5.VERSION, socks5.PASSWORD]):
            raise RemoteProtocolError("tor's SOCKS port takes no isolation word")
        await loop.sock_sendall(sock, socks5.password(self._word))
        if (await exactly(sock, 2))[1] != 0:
            raise RemoteProtocolError("tor's SOCKS port does not take our isolation word")
        await loop.sock_sendall(sock, socks5.connect(host, port))
        head = await exactly(sock, 5)
        await exactly(sock, socks5.bound_bytes(head))
        if head[1] != Reply.OK:
            raise Denied(head[1])


def _for_tor(host: str | IPAddress, rules: Destinations) -> str | IPAddress:
    """What may be asked of tor: public names, onions, and literals that are not on the never-list."""
    address = maybe_address(host) if isinstance(host, str) else host
    if address is not None:
        address = unmapped(address)
        if any(address in network for network in rules.never):
            raise Denied(Reply.POLICY, event="refused")
        return address
    name = maybe_name(str(host))
    if name is None:
        raise Denied(Reply.POLICY, event="refused")
    return name


async def _connect_to(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return await _connected(socket.socket(family, socket.SOCK_STREAM), (str(address), port))


async def _dial(endpoint: str | tuple[str, int]) -> socket.socket:
    """To tor's SOCKS port: a unix socket's path, or address and port."""
    family = socket.AF_UNIX if isinstance(endpoint, str) else socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    return await _connected(socket.socket(family, socket.SOCK_STREAM), endpoint)


async def _connected(sock: socket.socket, where: str | tuple[str, int]) -> socket.socket:
    sock.setblocking(False)
    try:
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, where)
    except TimeoutError as why:
        sock.close()
        raise Denied(Reply.TIMEOUT) from why
    except OSError as why:
        sock.close()
        raise Denied(_ERRORS.get(why.errno or 0, Reply.FAILED)) from why
    except BaseException:
        sock.close()
        raise
    if sock.family != socket.AF_UNIX:
        # A browser's small writes must not wait for acknowledgements (44 ms each).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
