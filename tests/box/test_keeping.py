"""`api.store` in the real jail: kept between sessions and restarts, shared with care, refused where not offered."""

from __future__ import annotations

import threading

import pytest

from bento_tor.client import Box, parse
from bento_tor.client.source import make_call
from bento_tor.errors import Refused

pytestmark = pytest.mark.sandbox

CONFIG = """
[policy]
sessions = 6
store_bytes = 2000000
store_blobs = 3
[policy.limits]
wall_s = 20
memory_bytes = 67108864
"""
ASKS = "# /// script\n# [tool.bento]\n# store = true\n# ///\n"
NOTES = parse(
    "notes",
    ASKS + "def put(n, d, e=None): return api.store.put(n, d, e)\n"
    "def get(n):\n    b = api.store.get(n)\n    api.send(b)\n    return b.version\n"
    "def listed(): return api.store.list()\n"
    "def big(size):\n"
    "    import hashlib, random\n"
    "    data = random.Random(1).randbytes(size)\n"
    "    api.store.put('big', data)\n"
    "    return api.store.get('big') == data\n"
    "def count(times):\n"
    "    for _ in range(times):\n"
    "        while True:\n"
    "            try:\n"
    "                try: old = api.store.get('n')\n"
    "                except KeyError: old = b''\n"
    "                api.store.put('n', str(int(old or 0) + 1), getattr(old, 'version', 0))\n"
    "                break\n"
    "            except api.store.Conflict: pass\n"
    "def wrong():\n"
    "    for what in (lambda: api.store.get('none'), lambda: api.store.put('x', bytes(3000000)),\n"
    "                 lambda: api.store.delete('none'), lambda: api.store.put('x', 'y', 7)):\n"
    "        try: what()\n"
    "        except Exception as e: api.send(type(e).__name__)\n"
    "    return 'still here'\n",
)


def ask(box: Box, invocation: bytes, name: str, *arguments: object) -> list[bytes]:
    session = box.function(invocation).start(make_call(name, *arguments))
    messages = list(session)
    assert session.wait().word == "returned", session.wait().detail
    return messages


def test_data_outlives_sessions_and_the_box(new_box) -> None:
    first = new_box(config=CONFIG)
    with first.connect() as box:
        token = box.upload(NOTES).invocation
        assert ask(box, token, "put", "a", "one") == [b"1"]
        assert ask(box, token, "put", "a", b"two\xff", 1) == [b"2"]
        assert ask(box, token, "get", "a") == [b"two\xff", b"2"]
        assert ask(box, token, "listed") == [b"{'a': {'version': 2, 'bytes': 4}}"]
        assert ask(box, token, "big", 1_500_001) == [b"True"]
        assert ask(box, token, "wrong") == [b"KeyError", b"OSError", b"KeyError", b"Conflict", b"still here"]
    first.kill()
    second = new_box(config=CONFIG)
    with second.connect() as box:
        assert ask(box, token, "get", "a") == [b"two\xff", b"2"]
        other = box.upload(NOTES)
        assert ask(box, other.invocation, "listed") == [b"{}"]


def test_sessions_that_share_a_counter_lose_no_step(new_box) -> None:
    running = new_box(config=CONFIG)
    with running.connect() as box:
        token = box.upload(NOTES).invocation

    def work() -> None:
        with running.connect() as box:
            ask(box, token, "count", 10)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with running.connect() as box:
        assert ask(box, token, "get", "n")[0] == b"30"


def test_who_does_not_ask_for_it_has_none_and_a_box_that_offers_none_refuses(box, new_box) -> None:
    with new_box(config=CONFIG).connect() as there:
        session = there.run(parse("f", "def f(): return api.store.list()"))
        assert session.wait().word == "raised" and "[tool.bento]" in session.wait().detail
        # Forged frames of a function that has no storage end it.
        forger = (
            "import os\ndef f():\n    os.write(api._wire._fd, b'\\x88\\0\\0\\0\\x11\\x04' + b'\\xff' * 8 + bytes(8))\n"
        )
        session = there.run(parse("f", forger + "    api.recv()"))
        assert session.wait().word == "killed:policy"
    with box.connect() as there, pytest.raises(Refused, match="asks for storage; this box keeps no data"):
        there.run(NOTES, make_call("listed"))


def test_a_function_that_floods_its_storage_holds_nobody_up(new_box) -> None:
    running = new_box(config=CONFIG)
    flood = parse("f", ASKS + "def f():\n    while True: api.store.put('x', bytes(1_000_000))")
    with running.connect() as there, running.connect() as other:
        session = there.run(flood)
        session.wait_attached()
        assert list(other.run(parse("f", "def f(): return 'x'"))) == [b"x"]
        session.end()
        assert session.wait().word == "killed:user"
