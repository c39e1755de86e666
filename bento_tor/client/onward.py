"""A box as a function of another box may use it: what the courier (bento_tor/courier) is handed.

Runs in a process that can open nothing, on streams that it is given. The box there is asked for its policy, and that is
accepted: the function can store nothing, and what it runs there its user has stored under terms that she has seen.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from bento_tor.client.box import Box, connect
from bento_tor.client.route import BoxAddress, explain, parse_address
from bento_tor.client.session import Session
from bento_tor.client.source import Call
from bento_tor.client.transport import SocketStream
from bento_tor.courier.errand import Dial
from bento_tor.egress.socks5 import Reply
from bento_tor.errors import Refused
from bento_tor.protocol import messages as m

# Half of it is how long silence lasts before the box there is asked whether it lives.
_TIMEOUT_S = 60.0


class Onward:
    """The verbs. There is none that stores."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def start(self, invocation: bytes, name: str, arguments: str) -> Session:
        """A session of a function that is stored there. It is told to be a function's: it can go no further."""
        return self._box.start(invocation, Call(name, arguments, onward=True))

    def attach(self, token: bytes, offset: int) -> Session:
        """A session that runs there."""
        return self._box.attach(token, offset=offset)

    def shutdown(self, token: bytes) -> None:
        """Erase a function there."""
        self._box.shutdown(token)


@contextmanager
def reach(address: str, dial: Dial) -> Iterator[Onward]:
    """The box at an onion address, by streams that `dial` gives."""
    place = parse_address(address)
    with connect(address, transport=_Dialled(place, dial), timeout_s=_TIMEOUT_S) as box:
        yield Onward(box)


class _Dialled:
    """A transport over sockets that somebody else connects."""

    builds_circuits = True

    def __init__(self, address: BoxAddress, dial: Dial) -> None:
        self._address = address
        self._dial = dial

    def open(self) -> SocketStream:
        """See `Transport`. Raises Refused where the function may make no more connections."""
        found = self._dial()
        if isinstance(found, socket.socket):
            return SocketStream(found, timeout_s=_TIMEOUT_S)
        if found in _LIMITS:
            raise Refused(_LIMITS[found], code=m.Code.FULL)
        raise explain(self._address, found)


_LIMITS = {
    int(Reply.BYTES): "the function has sent and received all that it may to and from other boxes",
    int(Reply.CONNECTIONS): "the function has made all the connections to other boxes that it may",
}
