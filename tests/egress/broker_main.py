"""The real broker, as a process of the test's: KEEPER_FD BOX_FD SETTINGS UID JUDGES."""

import logging
import os
import socket
import sys
from ipaddress import ip_address

import msgspec

from bento_tor.egress import names, process, ways
from bento_tor.egress.broker import Settings
from bento_tor.policy.destinations import Destinations


def blind() -> None:
    """What a fault in the judge would be, at its worst: only the kernel's rules are left."""

    def look_up(name: str) -> tuple:
        try:
            found = socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM)
        except OSError:
            return ()
        return tuple(ip_address(sockaddr[0]) for *_, sockaddr in found)

    Destinations.accepts = lambda self, address, port: True
    Destinations.may_accept = lambda self, port: True
    ways.maybe_name = lambda text: text
    ways.is_onion = lambda name: False
    names.look_up = look_up


def main() -> None:
    keeper, box = (socket.socket(fileno=int(text)) for text in sys.argv[1:3])
    settings = msgspec.json.decode(sys.argv[3], type=Settings)
    logging.basicConfig(level=logging.INFO)
    if sys.argv[5] == "blind":
        blind()
    process.run(keeper, box, settings, uid=int(sys.argv[4]))
    os._exit(0)  # as serve does: a thread may still wait for a resolver


main()
