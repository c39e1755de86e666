"""A cover against a real box: what goes over the client's socket is the same, whatever rides in it."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec import structs

from bento_tor.client import Retries, connect, load, parse
from bento_tor.client.cover import Cover, Pace
from bento_tor.client.cutting import NEVER, CutTransport
from bento_tor.client.route import TorTransport, UnixTransport, parse_address
from bento_tor.client.source import make_call
from bento_tor.client.transport import Stream, Transport
from bento_tor.controller.streams import check_reachable
from bento_tor.network import Network

pytestmark = pytest.mark.sandbox

SOURCE = load("cover")
# The box's own Acks may come in other pieces: one more or less, of so many bytes.
ACK_BYTES = 24


class Recorded:
    """A stream whose writes and bytes are noted: what an observer of the client's socket could count."""

    def __init__(self, stream: Stream) -> None:
        self.writes: list[int] = []
        self.came = bytearray()
        self._stream = stream

    def send(self, data: bytes) -> None:
        self.writes.append(len(data))
        self._stream.send(data)

    def recv(self, max_bytes: int) -> bytes:
        data = self._stream.recv(max_bytes)
        self.came += data
        return data

    def close(self) -> None:
        self._stream.close()

    def frames(self) -> list[bytes]:
        """Name and length of each frame that came."""
        found, at = [], 0
        while at + 4 <= len(self.came):
            stop = at + 4 + int.from_bytes(self.came[at : at + 4], "big")
            found.append(b"%s %d" % (bytes(self.came[at + 6 : at + 6 + (self.came[at + 5] & 0x1F)]), stop - at))
            at = stop
        return found


class Recording:
    """A transport that records its one stream."""

    builds_circuits = False

    def __init__(self, inner: Transport) -> None:
        self.streams: list[Recorded] = []
        self._inner = inner

    def open(self) -> Stream:
        self.streams.append(Recorded(self._inner.open()))
        return self.streams[-1]


def idle(cover: Cover) -> None:
    """Nothing at all."""


def echo(cover: Cover) -> None:
    def send() -> None:
        for size in (1, 5000, 40_000, 100):
            cover.send(bytes([size % 256]) * size)
        cover.finish()

    threading.Thread(target=send).start()


FAILS = parse(
    "f", "def f(text):\n    print('x' * 9000)\n    api.pad(10**6)\n    api.send(text)\n    raise ValueError(api.recv())"
)


def run_a_function(cover: Cover) -> None:
    cover.run(FAILS, make_call("f", "a word"))
    cover.send(b"and its answer")


def record(running, transport: Transport, pace: Pace, use: Callable[[Cover], None]) -> tuple[Recorded, bytes, Cover]:
    recording = Recording(transport)
    with connect(running.address, transport=recording, timeout_s=60) as there:
        there.policy()
        session = there.run(pace.asking(SOURCE, FAILS if use is run_a_function else None), pace.call())
        with Cover(session, pace) as cover:
            use(cover)
            data = b"".join(cover)
        assert session.wait().word == "returned"
    [stream] = recording.streams
    return stream, data, cover


def check_alike(pace: Pace, records: list[Recorded]) -> None:
    """Every write a slot, as many of them, and as many bytes of the same frames down."""
    first, *more = records
    for each in records:
        slots = [size for size in each.writes if size == pace.slot_bytes]
        others = [size for size in each.writes if size != pace.slot_bytes]
        # Hello, Hello with the policy's digest, the flight; slots until the box says the end; the last Ack.
        assert len(others) == 4 and others[-1] <= ACK_BYTES, str(others)
        assert each.writes[3:-1] == slots and len(slots) >= pace.slots - 4
        frames = Counter(name for name in each.frames() if name.startswith(b"Output"))
        assert frames.total() == pace.slots
        # Offsets below 64 KiB are shorter.
        assert frames[b"Output %d" % pace.slot_bytes] >= pace.slots - 65536 // (pace.slot_bytes - 22) - 1
    for other in more:
        assert [name for name in other.frames() if name.startswith(b"Output")] == [
            name for name in first.frames() if name.startswith(b"Output")
        ], "byte for byte, in the same order"
        assert abs(len(other.came) - len(first.came)) <= 2 * ACK_BYTES
        assert other.writes[:3] == first.writes[:3]


def test_idle_busy_and_running_a_function_are_the_same_bytes_in_the_same_slots(box) -> None:
    pace = Pace.of(99_600, 2.0, jitter=0.5)
    found = [
        record(box, UnixTransport(parse_address(box.address), timeout_s=60), pace, use)
        for use in (idle, echo, run_a_function)
    ]
    check_alike(pace, [stream for stream, _, _ in found])
    assert pace.slot_bytes == 4980
    (_, nothing, _), (_, echoed, busy), (_, said, failed) = found
    assert nothing == b""
    assert echoed == b"".join(bytes([size % 256]) * size for size in (1, 5000, 40_000, 100))
    assert busy.complete and not busy.unsent_bytes
    # What it printed, padded and raised is told to nobody but us.
    assert said == b"a word" and failed.complete
    assert failed.wait().detail == "ValueError: b'and its answer'"


def test_a_function_under_cover_has_its_whole_api(box) -> None:
    text = """
def f(*words):
    api.log("nobody hears this")
    assert api.args == list(words)
    api.send(str(api.host()["cpu_count"] > 0))
    while True:
        try:
            while not api.poll():
                pass
            api.send(api.recv() + api.recv())
        except EOFError:
            return {"the": "end"}
"""
    pace = Pace.of(19920, 4.0)
    inner = parse("f", "# /// script\n# [tool.bento]\n# host = 'full'\n# ///" + text)
    with box.connect() as there:
        session = there.run(pace.asking(SOURCE, inner), pace.call())
        with Cover(session, pace) as cover:
            cover.run(inner, make_call("f", "a", "b"))
            for word in (b"one", b"two" * 500, b"", b"four"):
                cover.send(word)
            cover.finish()
            assert list(cover) == [b"True", b"one" + b"two" * 500, b"four", b"{'the': 'end'}"]
        assert (cover.wait().word, session.log) == ("returned", b"")


ENDS = {
    "import os\ndef f(): os._exit(0)": "SystemExit: its process has died",
    "import sys\ndef f(): sys.exit(3)": "SystemExit: 3",
    "def f(): api.store.get('x')": "Unavailable: api.store: needs the key 'store' in the function's [tool.bento] table",
    "def f(): api.host(1)": "TypeError: Api.host() takes 1 positional argument but 2 were given",
    "def f(: pass": "SyntaxError: ",
}


@pytest.mark.parametrize("text", ENDS, ids=range(len(ENDS)))
def test_whatever_ends_it_is_told_in_the_slots_and_the_cover_goes_on(box, text: str) -> None:
    pace = Pace.of(9960, 4.0)
    inner = structs.replace(parse("f", "def f(): pass"), text=text)
    with box.connect() as there:
        session = there.run(pace.asking(SOURCE, inner), pace.call())
        with Cover(session, pace) as cover:
            cover.run(inner, make_call("f"))
            assert list(cover) == []
        assert (session.wait().word, cover.complete) == ("returned", True)
        assert cover.wait().detail.startswith(ENDS[text])


def test_a_connection_that_breaks_under_it_loses_no_byte(box) -> None:
    pace = Pace.of(99_600, 4.0)
    data = os.urandom(100_000)
    transport = CutTransport(
        UnixTransport(parse_address(box.address), timeout_s=60), [(60_000, NEVER), (NEVER, 60_000)]
    )
    with connect(box.address, transport=transport, timeout_s=60, retries=Retries(first_wait_s=0.05)) as there:
        session = there.run(SOURCE, pace.call())
        with Cover(session, pace) as cover:
            cover.send(data)
            cover.finish()
            assert b"".join(cover) == data
        assert cover.complete and session.wait().word == "returned"
    assert len(transport.streams) >= 3


def test_the_command_runs_a_function_or_echoes_and_says_what_did_not_fit(box, bento) -> None:
    there = ["--box", box.address, "--rate", "9960"]
    done = bento("client", "cover", *there, "--seconds", "4", stdin="one\ntwo\n")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr
    done = bento("client", "cover", "add", "5", "12", *there, "--seconds", "4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["messages"], told["outcome"], told["slots"], told["complete"]) == (["17"], "returned", 80, True)
    done = bento("client", "cover", "add", "5", "'x'", *there, "--seconds", "4")
    assert (done.returncode, done.stdout) == (8, "") and "raised TypeError" in done.stderr
    done = bento("client", "cover", *there, "--seconds", "1", stdin="x" * 30_000)
    assert done.returncode == 1 and "before everything had come" in done.stderr
    done = bento("client", "cover", "proxy", *there, "--seconds", "1")
    assert done.returncode == 7 and "egress" in done.stderr
    assert bento("client", "cover", *there, "--seconds", "0").returncode == 3


@pytest.mark.tor
def test_over_circuits_the_clients_socks_socket_tells_nothing_either(tor_network: Network, new_box) -> None:
    running = new_box("--publish", "--control", str(tor_network.client.control))
    running.address = running.told["address"]
    socks = tor_network.client.socks
    check_reachable(socks, running.address, 80, timeout_s=60)
    pace = Pace.of(39_840, 4.0)
    place = parse_address(running.address)
    transport = TorTransport(place, socks, isolation="cover", timeout_s=60)
    found = [record(running, transport, pace, use) for use in (idle, echo)]
    check_alike(pace, [stream for stream, _, _ in found])
    assert len(found[1][1]) == 45_101
