"""The library against a real box and the real sandbox: what a program that imports it sees."""

from __future__ import annotations

import hashlib
import os
import random
import threading

import pytest

from bento_tor.client import Reconnecting, Retries, parse
from bento_tor.client.cutting import NEVER, CutTransport
from bento_tor.client.route import UnixTransport, parse_address
from bento_tor.client.session import Session
from bento_tor.client.source import make_call
from bento_tor.errors import ConnectError, Refused
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m

pytestmark = pytest.mark.sandbox

ECHO = parse(
    "echo", "def echo():\n    while (line := api.recv()) != b'stop':\n        api.send(line)\n    return 'bye'"
)


def run(box, text: str, *arguments: object) -> tuple[list[bytes], Session]:
    with box.connect() as there:
        session = there.run(parse("f", text), make_call("f", *arguments))
        return list(session), session


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ("return 'ü'", ["ü".encode()]),
        ("return b'\\xff'", [b"\xff"]),
        ("return 0", [b"0"]),
        ("return 3.5", [b"3.5"]),
        ("return {'a': [1]}", [b"{'a': [1]}"]),
        ("return None", []),
        ("return ''", [b""]),
        ("api.send(''); api.send('a'); api.send(''); return False", [b"", b"a", b"", b"False"]),
    ],
)
def test_what_a_function_gives_arrives(box, body: str, messages: list[bytes]) -> None:
    got, session = run(box, f"def f(): {body}")
    assert (got, session.wait().word) == (messages, "returned")


@pytest.mark.parametrize(
    ("text", "word", "detail"),
    [
        ("def f(): return 1 // 0", "raised", "ZeroDivisionError"),
        ("def f(): import sys; sys.exit(3)", "exited:3", "status 3"),
        ("def g(): pass", "raised", "f"),
        ("def f(): import os; os.kill(os.getpid(), 6)", "crashed:SIGABRT", "SIGABRT"),
    ],
)
def test_how_it_ended_is_told(box, text: str, word: str, detail: str) -> None:
    _, session = run(box, text)
    assert session.wait().word == word
    assert detail in session.wait().detail


def test_what_it_prints_corrupts_nothing_and_is_told_at_the_end(box) -> None:
    got, session = run(box, "def f():\n    print('hällo'); api.send('a'); print('b' * 9000); return 'c'")
    assert got == [b"a", b"c"]
    assert session.log == b"b" * 4095 + b"\n"


def test_a_hundred_megabytes_arrive_whole(box) -> None:
    text = "import random\ndef f(seed):\n  r = random.Random(seed)\n  for _ in range(100): api.send(r.randbytes(10**6))"
    wanted = hashlib.sha256()
    source = random.Random(7)
    for _ in range(100):
        wanted.update(source.randbytes(10**6))
    with box.connect() as there:
        session = there.run(parse("f", text), make_call("f", 7))
        found = hashlib.sha256()
        while (piece := session.maybe_piece()) is not None:
            found.update(piece.data)
        assert session.wait().word == "returned"
    assert found.digest() == wanted.digest()


def test_one_message_of_ten_megabytes_stays_one(box) -> None:
    got, _ = run(box, "def f(): return b'x' * 10_000_000")
    assert [len(message) for message in got] == [10_000_000]


def test_input_of_many_sizes_comes_back(box) -> None:
    sent = [os.urandom(size) for size in (0, 1, 65_535, 65_536, 65_537, 262_144, 262_145, 1_000_000)]
    with box.connect() as there:
        session = there.run(ECHO)

        def feed() -> None:
            for data in sent:
                session.send(data)
            session.send("stop")

        thread = threading.Thread(target=feed)
        thread.start()
        assert list(session) == [*sent, b"bye"]
        thread.join()


def test_a_stored_function_runs_again_from_another_connection(box) -> None:
    with box.connect() as there:
        function = there.upload(ECHO)
    with box.connect() as there:
        session = there.function(function.invocation).start(make_call("echo"))
        session.send("stop")
        assert list(session) == [b"bye"]


def test_a_session_outlives_its_connection_and_loses_no_byte(box) -> None:
    with box.connect() as there:
        function = there.upload(ECHO)
        session = function.start()
        for word in ("one", "", "three"):
            session.send(word)
        assert session.maybe_receive() == b"one"
        session.detach()
        token, offset = session.token, session.offset
    with box.connect() as there:
        session = there.attach(token, offset=offset)
        assert [session.maybe_receive(), session.maybe_receive()] == [b"", b"three"]
        session.send("stop")
        assert list(session) == [b"bye"]
        assert session.wait().word == "returned"


def test_a_connection_that_breaks_loses_nothing_either(box) -> None:
    with box.connect() as there:
        token = there.upload(ECHO).start().token
        session = there.attach(token)
        session.send("kept")
        assert session.maybe_receive() == b"kept"
        # Gone without a word: nothing was acknowledged.
    with box.connect() as there:
        session = there.attach(token)
        assert session.maybe_receive() == b"kept"
        session.end()
        assert session.wait().word == "killed:user"


def test_the_newest_reader_wins_and_the_older_one_is_told(box) -> None:
    with box.connect() as first, box.connect() as second:
        old = first.upload(ECHO).start()
        old.wait_attached()
        new = second.attach(old.token)
        new.wait_attached()
        with pytest.raises(Refused) as caught:
            old.maybe_receive(timeout_s=20)
        assert caught.value.code == m.Code.DISPLACED
        new.send("stop")
        assert list(new) == [b"bye"]


def test_several_sessions_share_a_connection_and_none_waits_for_another(box) -> None:
    with box.connect() as there:
        function = there.upload(ECHO)
        sessions = [function.start() for _ in range(3)]
        for number, session in enumerate(sessions):
            session.send(str(number))
        for number in (2, 0, 1):
            assert sessions[number].maybe_receive(timeout_s=20) == str(number).encode()
        for session in sessions:
            session.end()
            assert session.wait().word == "killed:user"


def test_a_reader_that_is_slow_slows_its_own_function_only(box) -> None:
    """100 MB wait in the function, not in the box."""
    flood = parse("f", "def f():\n    for _ in range(100): api.send(bytes(10**6))")
    with box.connect() as slow, box.connect() as quick:
        session = slow.run(flood)
        assert [list(quick.run(ECHO_ONCE)) for _ in range(3)] == [[b"x"]] * 3
        assert box.reader().memory_info().rss < 200 * 2**20
        session.end()
        assert session.wait().word == "killed:user"


ECHO_ONCE = parse("f", "def f(): return 'x'")


def test_a_token_that_opens_nothing_is_refused_alike_in_every_role(box) -> None:
    with box.connect() as there:
        function = there.upload(ECHO)
        assert function.shutdown_token is not None
        tries = [
            lambda: there.function(os.urandom(32)).start(make_call("f")).wait(),
            lambda: there.function(function.shutdown_token).start(make_call("echo")).wait(),
            lambda: there.attach(os.urandom(32)).wait(),
            lambda: there.attach(function.invocation).wait(),
            lambda: there.shutdown(os.urandom(32)),
            lambda: there.shutdown(function.invocation),
        ]
        said = set()
        for attempt in tries:
            with pytest.raises(Refused) as caught:
                attempt()
            said.add((caught.value.code, caught.value.message))
        assert len(said) == 1


def test_shutdown_erases_the_function_and_ends_its_sessions(box) -> None:
    with box.connect() as there, box.connect() as other:
        function = there.upload(ECHO)
        session = function.start()
        session.wait_attached()
        other.function(function.invocation, shutdown=function.shutdown_token).shutdown()
        assert session.wait().word == "killed:user"
        with pytest.raises(Refused):
            function.start().wait()


def test_a_box_that_is_full_says_so_and_is_free_again(box) -> None:
    with box.connect() as there:
        function = there.upload(ECHO)
        sessions = [function.start() for _ in range(6)]
        for session in sessions:
            session.wait_attached()
        with pytest.raises(Refused) as caught:
            function.start().wait_attached()
        assert caught.value.code == m.Code.FULL
        for session in sessions:
            session.end()
            session.wait()
        session = function.start()
        session.send("stop")
        assert list(session) == [b"bye"]


def test_a_policy_is_seen_before_anything_runs_and_asked_for_once(box) -> None:
    seen: list[tuple[Policy, bytes]] = []
    with box.connect(accept=lambda policy, digest: seen.append((policy, digest))) as there:
        assert list(there.run(ECHO_ONCE)) == [b"x"]
        assert there.policy().host_stats == "full"
    assert len(seen) == 1
    with box.connect(policy_digest=seen[0][1], accept=lambda *_: pytest.fail("asked again")) as there:
        assert list(there.run(ECHO_ONCE)) == [b"x"]


def test_a_policy_that_has_changed_is_told_and_the_flight_is_said_again(box) -> None:
    seen: list[bytes] = []
    with box.connect(policy_digest=b"o" * 32, accept=lambda _, digest: seen.append(digest)) as there:
        assert list(there.run(ECHO_ONCE)) == [b"x"]
    assert len(seen) == 1


def test_a_user_who_does_not_accept_runs_nothing(box) -> None:
    def refuse(policy: Policy, digest: bytes) -> None:
        raise Refused("I do not want that")

    with box.connect(accept=refuse) as there, pytest.raises(Refused, match="do not want"):
        there.run(ECHO_ONCE)


def test_a_function_that_does_not_fit_is_refused_here_and_at_the_box(box) -> None:
    greedy = parse("f", "# /// script\n# [tool.bento]\n# memory = 512\n# ///\ndef f(): pass")
    with box.connect() as there, pytest.raises(Refused, match="asks for 512 MiB of memory; this box gives 64 MiB"):
        there.run(greedy)
    with box.connect() as liar:
        digest = liar.policy() and liar.policy_digest
    # This one has no policy to check against, so the box must.
    with box.connect(policy_digest=digest) as liar, pytest.raises(Refused, match="the box refused: asks for 512 MiB"):
        liar.run(greedy)


def test_a_box_that_is_not_there_is_said(tmp_path) -> None:
    from bento_tor.client import connect

    with pytest.raises(ConnectError), connect(f"unix:{tmp_path}/none"):
        pass


def test_the_time_limit_of_the_manifest_holds(box) -> None:
    text = "# /// script\n# [tool.bento]\n# seconds = 1\n# ///\ndef f():\n    while True: pass"
    _, session = run(box, text)
    assert session.wait().word == "killed:time"


def test_what_a_session_said_is_said_once_though_the_flight_came_twice(box) -> None:
    """tor may bring early data again on another circuit: a known session takes no input twice."""
    with box.connect() as there:
        function = there.upload(ECHO)
        session = function.start()
        session.send("a")
        assert session.maybe_receive() == b"a"
    with box.connect() as there:
        there.policy()
        channel = there._wire.new_channel()
        call = make_call("echo")
        there._wire.send(
            m.Execute(channel, function.invocation, session.token, call.name, call.arguments),
            m.Open(channel, session.token, 0),
            m.Input(channel, 0, b"a", True, False),
            m.Input(channel, 2, b"b", True, False),
        )
        again = Session(there._line, there._wire, channel, session.token)
        assert [again.maybe_receive(), again.maybe_receive()] == [b"a", b"b"]
        again.end()
        assert again.wait().word == "killed:user"


def breaking(address: str, cuts: list[tuple[int, int]]) -> CutTransport:
    """A way to the box whose first streams break after so many bytes each way."""
    return CutTransport(UnixTransport(parse_address(address), timeout_s=30), cuts)


OFTEN = Retries(most=100, first_wait_s=0.01)


def test_twenty_megabytes_survive_breaks_at_random_places(box) -> None:
    dice = random.Random(3)
    way = breaking(box.address, [(NEVER, dice.randint(1, 4_000_000)) for _ in range(8)])
    text = "import random\ndef f():\n  r = random.Random(7)\n  for n in range(200): api.send(r.randbytes(n * 1000))"
    source = random.Random(7)
    with box.connect(transport=way, retries=OFTEN) as there:
        session = there.run(parse("f", text))
        for number in range(200):
            assert session.maybe_receive() == source.randbytes(number * 1000)
        assert session.wait().word == "returned"
    assert len(way.streams) > 4


def test_input_survives_breaks_at_random_places(box) -> None:
    dice = random.Random(4)
    way = breaking(box.address, [(dice.randint(200, 300_000), dice.randint(200, 300_000)) for _ in range(8)])
    words = [random.Random(number).randbytes(number * 3701 % 90_000) for number in range(40)]
    with box.connect(transport=way, retries=OFTEN) as there:
        session = there.run(ECHO)

        def feed() -> None:
            for word in words:
                session.send(word)
            session.send("stop")

        feeding = threading.Thread(target=feed)
        feeding.start()
        assert list(session) == [*words, b"bye"]
        feeding.join()
    assert len(way.streams) > 4


def test_an_upload_goes_on_where_its_connection_broke(box) -> None:
    big = parse("f", "def f(): return 'whole'\n" + "#" * 900_000)
    way = breaking(box.address, [(500_000, NEVER), (300_000, NEVER)])
    with box.connect(transport=way, retries=OFTEN) as there:
        there.policy()
        assert list(there.upload(big).start()) == [b"whole"]
    # Without a part kept at the box the 300,000 bytes of the second try would be lost, and the third would have all.
    assert len(way.streams) == 3


def test_a_run_survives_breaks_close_together(box) -> None:
    for seed in range(12):
        dice = random.Random(seed)
        way = breaking(box.address, [(dice.randint(0, 900), dice.randint(0, 500)) for _ in range(4)])
        with box.connect(transport=way, retries=OFTEN) as there:
            session = there.run(ECHO, first=b"one")
            assert session.maybe_receive() == b"one"
            session.send("stop")
            assert list(session) == [b"bye"] and session.wait().word == "returned"


def test_a_session_of_a_box_that_died_is_lost_and_what_came_of_it_stays(new_box) -> None:
    first = new_box()
    told: list[Reconnecting] = []
    with first.connect(on_reconnect=told.append) as there:
        session = there.run(ECHO)
        session.send("before")
        assert session.maybe_receive() == b"before"
        first.kill()
        waiting: list[str] = []
        thread = threading.Thread(target=lambda: waiting.append(session.wait().word))
        thread.start()
        new_box()
        thread.join(timeout=30)
        assert waiting == ["lost"] and told
        shutdown = session.maybe_shutdown
        assert shutdown is not None
        there.shutdown(shutdown)  # the function is still there, and goes


def test_a_session_is_left_before_anything_was_acknowledged_and_its_ticket_is_enough(box) -> None:
    from bento_tor.client import attach

    text = "def f():\n    for n in range(30): api.send(bytes([n]) * 10_000)"
    with box.connect() as there:
        session = there.run(parse("f", text))
        session.wait_attached()
        ticket = session.ticket
    assert ticket.startswith(f"bento1:{box.address}:session:")
    with attach(ticket, timeout_s=30) as again:
        assert list(again) == [bytes([number]) * 10_000 for number in range(30)]
        assert again.wait().word == "returned"
