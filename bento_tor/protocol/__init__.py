"""The protocol between a client and a box: bytes <-> messages, and who may say what when.

    messages      the frozen values that travel
    states        the rules, and the tables that say them exactly
    frames        length and msgpack <-> one message
    channel       offsets and windows of what flows on a channel
    connection    all of it at work, for one end of a connection

No socket, clock, file or thread: `Connection` takes bytes and gives messages, takes messages and gives bytes.
For people who write another implementation: docs/protocol.md.
"""

from bento_tor.protocol.channel import units
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, NeedData
from bento_tor.protocol.states import ChannelState, ConnectionState, Role

__all__ = [
    "NEED_DATA",
    "ChannelState",
    "Connection",
    "ConnectionState",
    "EndOfStream",
    "NeedData",
    "Role",
    "units",
]
