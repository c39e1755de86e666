"""What a program imports to use boxes: `connect()` -> `Box` -> `Function` -> `Session`.

from bento_tor.client import connect

with connect("<address>.onion") as box:
    with box.run(load("hello.py")) as session:
        for message in session:
            print(message.decode())
    print(session.wait().word)
"""

from bento_tor.client.box import Box, Function, attach, connect
from bento_tor.client.retries import Ledger, Reconnecting, Retries
from bento_tor.client.session import Session
from bento_tor.client.source import load, make_call, parse
from bento_tor.client.transport import Silent, Stream, Transport
from bento_tor.policy.outcome import Outcome

__all__ = [
    "Box",
    "Function",
    "Ledger",
    "Outcome",
    "Reconnecting",
    "Retries",
    "Session",
    "Silent",
    "Stream",
    "Transport",
    "attach",
    "connect",
    "load",
    "make_call",
    "parse",
]
