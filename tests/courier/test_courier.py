"""`api.box` from end to end: two real boxes, a real network of tors, functions in the real jail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.controller.streams import check_reachable

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]

HEAD = "# /// script\n# [tool.bento]\n# box = true\n# ///\n"


def config(network: Any, *, policy: str = "boxes = 2") -> str:
    return f"""
socks = "{network.client.socks}"
ready = 1
[policy]
{policy}
[policy.limits]
wall_s = 120
memory_bytes = 67108864
"""


def asking(text: str) -> Any:
    return parse("f", HEAD + text)


@pytest.fixture(scope="module")
def pair(running_box, tor_network, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """Two published boxes: one whose functions may use others, and another."""
    options = ("--publish", "--control", str(tor_network.client.control))
    boxes = []
    try:
        for name in ("here", "there"):
            state = tmp_path_factory.mktemp(name) / "s"
            boxes.append(running_box(state, *options, config=config(tor_network)))
        for box in boxes:
            check_reachable(tor_network.client.socks, box.told["address"], 80, timeout_s=90)
        yield boxes[0], boxes[1]
    finally:
        for box in boxes:
            words = box.words()
            assert box.stop() == 0
            assert "Traceback" not in words, words


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


def test_a_function_talks_to_a_function_of_another_box(pair) -> None:
    here, there = pair
    with here.connect() as ours, there.connect() as theirs:
        stored = theirs.upload(ECHO)
        session = ours.run(asking(TALK), make_call("f", there.told["address"], stored.invocation))
        said = [message.decode() for message in session]
        assert session.wait().word == "returned", session.wait()
    assert said[:3] == ["True"] * 3 and said[4] == "returned"
    assert said[3].startswith(f"bento1:{there.told['address']}:session:")
