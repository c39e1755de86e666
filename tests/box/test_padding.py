"""`api.pad_to` at real boxes: every byte that comes from the box is counted from outside, at the client's socket."""

from __future__ import annotations

import time

import pytest

from bento_tor.client import connect, parse
from bento_tor.client.retries import Retries
from bento_tor.client.source import make_call
from bento_tor.controller.streams import check_reachable
from bento_tor.errors import ConnectError, Refused

pytestmark = pytest.mark.sandbox

# Sends so many bytes, then ends as it is told to.
TEXT = """
def f(size, multiple, release=None, then=''):
    api.pad_to(multiple, release)
    if size: api.send(bytes(size))
    exec(then)
"""
SOURCE = parse("f", TEXT)


def run(there, *args: object) -> tuple[int, str]:
    """Bytes of output, and how it ended; then it is erased."""
    session = there.run(SOURCE, make_call("f", *args))
    length = sum(len(message) for message in session)
    there.shutdown(session.maybe_shutdown, last=True)
    return length, session.wait().word


@pytest.mark.parametrize("multiple", [1, 29, 257, 65_536, 100_003, 1_000_000])
def test_all_that_comes_from_the_box_is_a_multiple(box, tap, multiple: int) -> None:
    wire = tap(box.state / "box.sock")
    sizes = [0, 1, 255, 256, 65_536, 99_999] if multiple < 100_000 else [0, 64_000, 990_000, 1_000_000]
    for size in sizes:
        with connect(f"unix:{wire.address}", timeout_s=30) as there:
            assert run(there, size, multiple) == (size, "returned")
        assert wire.tapped[-1].received % multiple == 0, (size, wire.tapped[-1].received)
    if multiple == 1_000_000:
        assert [each.received for each in wire.tapped] == [1_000_000, 1_000_000, 1_000_000, 2_000_000]
        # As many bytes go the other way, whatever was data and whatever was padding: the Acks.
        texts = [len(str(size)) for size in sizes[:3]]
        assert len({each.sent - text for each, text in zip(wire.tapped, texts, strict=False)}) == 1


ENDINGS = {
    "returned": "",
    "raised": "raise ValueError('x' * 5000)",
    "exited:3": "print('y' * 9000); raise SystemExit(3)",
    "killed:memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "crashed:SIGSEGV": "import os; os.kill(os.getpid(), 11)",
    "killed:policy": "import os; os.write(api._wire._fd, b'\\xff' * 5); import time; time.sleep(9)",
}


@pytest.mark.parametrize("word", ENDINGS)
def test_whatever_becomes_of_the_function_it_looks_the_same_from_outside(box, tap, word: str) -> None:
    wire = tap(box.state / "box.sock")
    with connect(f"unix:{wire.address}", timeout_s=30) as there:
        there.policy()
        assert run(there, 5000, 100_000, 2, ENDINGS[word])[1] == word
    seen = wire.tapped[-1]
    assert seen.received == 100_000
    assert 2.0 <= seen.bulk_at_s < 4.0, "it leaves two seconds after the start"
    assert seen.last_at_s < seen.bulk_at_s + 1.5, "and in one burst"


def test_it_leaves_at_once_when_the_function_has_ended_or_on_the_grid(box, tap) -> None:
    wire = tap(box.state / "box.sock")
    for release, then in ((0, "import time; time.sleep(0.7)"), (3, "import time; time.sleep(0.5)")):
        with connect(f"unix:{wire.address}", timeout_s=30) as there:
            assert run(there, 50_000, 1 << 16, release, then) == (50_000, "returned")
    at_once, on_the_grid = wire.tapped
    assert 0.7 <= at_once.bulk_at_s < 5.0
    assert 3.0 <= on_the_grid.bulk_at_s < 6.0


def test_a_resume_replays_it_and_ends_at_a_multiple_too(box, tap) -> None:
    wire = tap(box.state / "box.sock")
    with connect(f"unix:{wire.address}", timeout_s=30) as there:
        session = there.run(SOURCE, make_call("f", 300_000, 2_000_000))
        got = session.maybe_piece()
        token, offset = session.token, session.offset
    # Left without a word, in the middle: what came is no multiple, and what is missing comes on another connection.
    with connect(f"unix:{wire.address}", timeout_s=30) as there, there.attach(token, offset=offset) as session:
        assert len(got.data) + sum(map(len, session)) == 300_000
        assert session.wait().word == "returned"
        assert session.offset > 300_001
    assert wire.tapped[-1].received % 2_000_000 == 0 and wire.tapped[-1].received > 0


def test_more_than_may_be_kept_leaves_at_its_time_and_not_never(box, tap) -> None:
    wire = tap(box.state / "box.sock")
    size = 6_000_000  # the policy keeps 4 MiB
    with connect(f"unix:{wire.address}", timeout_s=30) as there:
        assert run(there, size, 1_000_000, 1) == (size, "returned")
    assert wire.tapped[-1].received == 7_000_000 and wire.tapped[-1].bulk_at_s >= 1.0


def test_more_than_the_policy_lets_out_is_no_promise(new_box) -> None:
    with new_box(config="[policy]\noutput_bytes = 1000000").connect() as there:
        assert run(there, 10, 1_000_001, None, "import time; time.sleep(9)")[1] == "killed:policy"


def test_other_sessions_of_the_connection_are_counted_in(box, tap) -> None:
    wire = tap(box.state / "box.sock")
    with connect(f"unix:{wire.address}", timeout_s=30) as there:
        assert run(there, 12_345, 0) == (12_345, "returned")
        for multiple in (10_007, 50_000):
            session = there.run(SOURCE, make_call("f", 3, multiple))
            assert session.wait().word == "returned"
    assert wire.tapped[-1].received % 50_000 == 0


def test_a_padded_connection_is_erased_without_an_answer(box) -> None:
    with box.connect() as there:
        function = there.upload(SOURCE)
        assert function.start(make_call("f", 3, 5000)).wait().word == "returned"
        there.shutdown(function.shutdown_token, last=True)
    with box.connect() as there, pytest.raises(Refused, match="opens nothing"):
        there.function(function.invocation).start(make_call("f", 3, 0)).wait()


def test_without_last_the_silence_is_not_taken_for_an_answer(box) -> None:
    with box.connect(retries=Retries(most=0)) as there:
        session = there.run(SOURCE, make_call("f", 3, 5000))
        session.wait()
        with pytest.raises(ConnectError):
            there.shutdown(session.maybe_shutdown)


@pytest.mark.tor
def test_the_multiple_holds_at_the_socks_socket_of_a_real_network(tor_network, new_box, tap) -> None:
    running = new_box("--publish", "--control", str(tor_network.client.control))
    address, socks = running.told["address"], tor_network.client.socks
    check_reachable(socks, address, 80, timeout_s=60)
    wire = tap((socks.host, socks.port))
    for size, multiple, then in ((0, 4096, ""), (70_000, 100_000, ""), (99_000, 100_000, "1 / 0"), (5, 300_001, "")):
        with connect(address, socks=wire.address, timeout_s=60) as there:
            began = time.monotonic()
            assert run(there, size, multiple, 1.0, then)[0] == size
            assert time.monotonic() - began > 1
        assert wire.tapped[-1].received % multiple == 0 and wire.tapped[-1].received > 0
