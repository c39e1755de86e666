"""`api.box` from end to end: two real boxes, a real network of tors, functions in the real jail."""

from __future__ import annotations

import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

TALK = """
def f(address, token):
    with api.box(address) as there:
        session = there.run(token, "echo")
        for text in (b"one", b"", bytes(300000)):
            session.send(text)
            api.send(str(session.recv() == text))
        session.send("stop")
        api.send(session.ticket)
        return session.wait()
"""
ECHO = parse("echo", "def echo():\n    while (m := api.recv()) != b'stop': api.send(m)")


def test_a_function_talks_to_a_function_of_another_box(pair, asking) -> None:
    here, there = pair
    with here.connect() as ours, there.connect() as theirs:
        stored = theirs.upload(ECHO)
        session = ours.run(asking(TALK), make_call("f", there.told["address"], stored.invocation))
        said = [message.decode() for message in session]
        assert session.wait().word == "returned", session.wait()
    assert said[:3] == ["True"] * 3 and said[4] == "returned"
    assert said[3].startswith(f"bento1:{there.told['address']}:session:")
