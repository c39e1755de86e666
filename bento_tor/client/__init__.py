"""What a program imports to use boxes: `connect()` -> `Box` -> `Function` -> `Session`.

from bento_tor.client import connect

with connect("<address>.onion") as box:
    with box.run(load("hello.py")) as session:
        for message in session:
            print(message.decode())
    print(session.wait().word)
"""

from bento_tor.client.box import Box, Function, connect
from bento_tor.client.session import Session
from bento_tor.client.source import load, make_call, parse

__all__ = ["Box", "Function", "Session", "connect", "load", "make_call", "parse"]
