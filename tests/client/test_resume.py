"""A connection that breaks at any byte loses nothing and doubles nothing: output, input, the call, the upload."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from bento_tor.client import Box, Reconnecting, Retries, Stream, connect, make_call, parse
from bento_tor.client.cutting import NEVER, CutTransport
from bento_tor.client.memory import ADDRESS, MemoryBox, MemorySession
from bento_tor.errors import ConnectError, Refused
from bento_tor.protocol import messages as m

OFTEN = Retries(most=10**6, first_wait_s=0.0)
TALK = parse("talk", "def talk(): pass")
BIG = parse("big", "def big(): pass\n" + "#" * 200_000)


class Talk:
    """Echoes, and notes each call and each message that it got."""

    def __init__(self) -> None:
        self.heard: list[list[bytes]] = []

    def __call__(self, api: MemorySession, greeting: str) -> str:
        heard: list[bytes] = []
        self.heard.append(heard)
        api.send(greeting)
        while True:
            try:
                heard.append(api.recv())
            except EOFError:
                return "bye"
            api.send(heard[-1] * 2)


def reach(there: MemoryBox, cuts: list[tuple[int, int]], **options: object) -> tuple[Box, CutTransport]:
    way = CutTransport(there, cuts)
    options = {"retries": OFTEN, "timeout_s": 20, "policy_digest": there.policy_digest} | options
    return connect(ADDRESS, transport=way, **options), way  # type: ignore[arg-type]


def talk(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """One small run, with everything in it. Gives how many bytes went each way over each connection."""
    function = Talk()
    with MemoryBox({"talk": function}) as there:
        box, way = reach(there, cuts)
        with box:
            session = box.run(TALK, make_call("talk", "hi"), first=b"one")
            said = [session.maybe_receive(), session.maybe_receive()]
            for word in ("", "three"):
                session.send(word)
                said.append(session.maybe_receive())
            session.finish()
            said += list(session)
            assert session.wait().word == "returned"
        assert said == [b"hi", b"oneone", b"", b"threethree", b"bye"]
        assert function.heard == [[b"one", b"", b"three"]], "started once, and heard all once"
    return [(stream.sent, stream.received) for stream in way.streams]


@pytest.mark.parametrize("upwards", [True, False])
def test_a_run_survives_a_cut_at_every_byte(upwards: bool) -> None:
    (whole,) = talk([])
    last = whole[0] if upwards else whole[1]
    for at in range(last):
        used = talk([(at, NEVER) if upwards else (NEVER, at)])
        assert len(used) == 2 or at > last - 40, "only the last Ack needs no answer"


def test_a_run_survives_many_cuts_at_random() -> None:
    dice = random.Random(5)
    for _ in range(200):
        talk([(dice.randint(0, 700), dice.randint(0, 300)) for _ in range(dice.randint(1, 6))])


def flood(api: MemorySession, count: int) -> None:
    for number in range(count):
        api.send(random.Random(number).randbytes(number % 5000))


def test_output_of_many_windows_survives_cuts_at_random() -> None:
    dice = random.Random(7)
    wanted = [random.Random(number).randbytes(number % 5000) for number in range(2500)]
    cuts = [(NEVER, dice.randint(1, 400_000)) for _ in range(12)]
    with MemoryBox({"flood": flood}) as there:
        box, way = reach(there, cuts)
        with box:
            session = box.run(parse("flood", "def flood(): pass"), make_call("flood", 2500))
            assert list(session) == wanted
            assert session.wait().word == "returned"
    assert len(way.streams) > 5


def test_input_of_many_windows_survives_cuts_at_random_while_another_thread_reads() -> None:
    dice = random.Random(9)
    words = [random.Random(number).randbytes(number * 3701 % 90_000) for number in range(40)]
    cuts = [(dice.randint(1, 400_000), dice.randint(1, 400_000)) for _ in range(12)]
    function = Talk()
    with MemoryBox({"talk": function}) as there:
        box, way = reach(there, cuts)
        with box:
            session = box.run(TALK, make_call("talk", ""))

            def feed() -> None:
                for word in words:
                    session.send(word)
                session.finish()

            feeding = threading.Thread(target=feed)
            feeding.start()
            assert list(session) == [b"", *[word * 2 for word in words], b"bye"]
            feeding.join()
    assert function.heard == [words]
    assert len(way.streams) > 5


def test_several_sessions_of_one_box_come_back_together() -> None:
    function = Talk()
    with MemoryBox({"talk": function}) as there:
        box, way = reach(there, [(NEVER, at) for at in (500, 250, 150)])
        with box:
            stored = box.upload(TALK)
            sessions = [stored.start(make_call("talk", str(number))) for number in range(5)]
            for turn in range(6):
                for session in sessions:
                    session.send(str(turn))
            for session in sessions:
                session.finish()
            for number, session in enumerate(sessions):
                assert list(session) == [str(number).encode(), *[str(t).encode() * 2 for t in range(6)], b"bye"]
    assert len(way.streams) == 4 and len(function.heard) == 5


class Settled(MemoryBox):
    """Takes a new connection when it has dealt with all that came over those before."""

    def open(self) -> Stream:
        for thread in threading.enumerate():
            if thread.name == "memory-visit":
                thread.join(timeout=20)
        return super().open()


def test_an_upload_goes_on_where_it_stopped() -> None:
    size = len(BIG.text)
    for at in (1, 300, 70_000, 140_000, size, size + 300):
        with Settled({}) as there:
            box, way = reach(there, [(at, NEVER)])
            with box:
                function = box.upload(BIG)
                assert there.stored[function.invocation][0] == function.shutdown_token
        first, second = way.streams if len(way.streams) == 2 else (way.streams[0], None)
        assert first.sent <= at
        whole_chunks = max(0, at - 400) // (m.MAX_DATA_BYTES + 20) * m.MAX_DATA_BYTES
        assert second is None or second.sent <= size - whole_chunks + 600, "what was there is not sent again"


def test_an_upload_that_is_cut_again_and_again_gets_through() -> None:
    with MemoryBox({}) as there:
        box, way = reach(there, [(90_000, NEVER)] * 10)
        with box:
            box.upload(BIG)
    assert 3 <= len(way.streams) <= 5


def test_erasing_is_done_though_the_answer_was_lost() -> None:
    with MemoryBox({}) as there:
        box, _ = reach(there, [(NEVER, 200)])
        with box:
            function = box.upload(TALK)
            for _ in range(30):
                box.ping()  # until the cut comes
            function.shutdown()
            assert not there.stored
            with pytest.raises(Refused):
                function.start(make_call("talk", "")).wait()


def test_each_reconnection_is_told_and_after_three_it_stops() -> None:
    told: list[Reconnecting] = []
    with MemoryBox({"talk": Talk()}) as there:
        few = Retries(first_wait_s=0.0)
        box, way = reach(there, [(NEVER, 60)] * 9, retries=few, on_reconnect=told.append)
        with box, pytest.raises(ConnectError, match="3 reconnections in 10 minutes") as caught:
            session = box.run(TALK, make_call("talk", "hi"))
            session.send("x")
            list(session)
        assert "guard" in caught.value.hint
    assert len(way.streams) == 4
    assert len(told) == 3 and all("closed" in each.why or "broke" in each.why for each in told)


def test_a_ledger_counts_for_all_connections_to_a_box() -> None:
    from bento_tor.client.retries import MemoryLedger

    ledger, few = MemoryLedger(), Retries(most=2, first_wait_s=0.0)
    with MemoryBox({}) as there:
        for _ in range(2):
            box, way = reach(there, [(NEVER, 60)], retries=few, ledger=ledger)
            with box:
                box.policy()
                box.ping()
                box.ping()
            assert len(way.streams) == 2
        box, way = reach(there, [(NEVER, 60)], retries=few, ledger=ledger)
        with box, pytest.raises(ConnectError, match="2 reconnections"):
            for _ in itertools.repeat(None, 9):
                box.ping()
        assert len(way.streams) == 1


def test_without_retries_a_break_is_said_at_once() -> None:
    with MemoryBox({"talk": Talk()}) as there:
        box, way = reach(there, [(NEVER, 100)], retries=Retries(most=0))
        with box, pytest.raises(ConnectError, match="broke"):
            list(box.run(TALK, make_call("talk", "hi")))
        assert len(way.streams) == 1


def test_a_newer_reader_is_not_fought_with() -> None:
    with MemoryBox({"talk": Talk()}) as there, there.connect() as one, there.connect() as other:
        old = one.run(TALK, make_call("talk", "hi"))
        assert old.maybe_receive() == b"hi"
        new = other.attach(old.token)
        new.wait_attached()
        with pytest.raises(Refused) as caught:
            old.maybe_receive(timeout_s=20)
        assert caught.value.code == m.Code.DISPLACED
        assert new.maybe_receive() == b"hi"


class Stalling:
    """Its first stream passes so many bytes down, and then nothing more; nor does it break."""

    builds_circuits = False

    def __init__(self, inner: MemoryBox, down: int) -> None:
        self.pings = 0
        self.left = down
        self.opened = 0
        self._inner = inner

    def open(self) -> Stream:
        self.opened += 1
        return StallingStream(self._inner.open(), self) if self.opened == 1 else self._inner.open()


class StallingStream:
    def __init__(self, inner: Stream, how: Stalling) -> None:
        self._inner = inner
        self._how = how
        self._closed = threading.Event()

    def send(self, data: bytes) -> None:
        self._how.pings += b"Ping" in data
        self._inner.send(data)

    def recv(self, max_bytes: int) -> bytes:
        if self._how.left <= 0:
            self._closed.wait(0.05)
            raise TimeoutError("nothing came")
        data = self._inner.recv(min(max_bytes, self._how.left))
        self._how.left -= len(data)
        return data

    def close(self) -> None:
        self._closed.set()
        self._inner.close()


def test_a_stream_that_stalls_without_breaking_is_left() -> None:
    with MemoryBox({"talk": Talk()}) as there:
        way = Stalling(there, 150)
        box = connect(ADDRESS, transport=way, retries=OFTEN, timeout_s=20, policy_digest=there.policy_digest)
        with box:
            session = box.run(TALK, make_call("talk", "x" * 1000), first=b"one")
            session.finish()
            assert list(session) == [b"x" * 1000, b"oneone", b"bye"]
    assert way.opened == 2 and way.pings == 1


def test_leaving_ends_all_waiting() -> None:
    with MemoryBox({"talk": Talk()}) as there:
        with there.connect() as box:
            session = box.run(TALK, make_call("talk", "hi"))
            waiting = threading.Thread(target=lambda: pytest.raises(ConnectError, session.wait))
            waiting.start()
        waiting.join(timeout=20)
        assert not waiting.is_alive()
