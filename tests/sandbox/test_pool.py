"""Ready sandboxes: used once, under the session's own limits, dropped when they die, refilled when it is quiet."""

from __future__ import annotations

import os
import time

import pytest

from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Kind, judge
from bento_tor.sandbox import frames
from bento_tor.sandbox.pool import Pool, _is_ready

pytestmark = pytest.mark.sandbox


@pytest.fixture
def pool(jail, nothing_left):
    pool = Pool(jail, Limits(), 2)
    yield pool
    pool.close()


def ready(cell):
    deadline = time.monotonic() + 10
    while not _is_ready(cell):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return cell


def finish(cell, runner, source):
    talk = runner.converse(cell.control, cell.log.fileno(), frames.encode_code("f", "([], {})", source))
    talk.outcome = judge(talk.said, cell.wait(10), ready=talk.ready)
    return talk


def test_each_is_used_once_and_a_burst_starts_cold(pool, runner):
    made = [ready(pool.refill()) for _ in range(2)]
    assert not pool.wants_more
    taken = []
    started = [pool.start(Limits(), taken.append) for _ in range(3)]
    assert [pooled for _, pooled in started] == [True, True, False]
    assert taken == made
    assert (pool.pool_hits, pool.cold_starts) == (2, 1)
    for cell, _ in started:
        talk = finish(cell, runner, b"def f(): return 17")
        assert (talk.ready, talk.messages, talk.outcome.word) == (True, [b"17"], "returned")


def test_limits_are_set_at_hand_over(pool, runner, jail):
    ready(pool.refill())
    cell, pooled = pool.start(Limits(memory_bytes=32 * MIB, pids=3), lambda cell: None)
    assert pooled == (jail.effective >= {"memory", "pids"})
    talk = finish(cell, runner, b"def f():\n  kept = []\n  while True: kept.append(bytearray(1 << 20))")
    assert talk.outcome.word == ("killed:memory" if pooled else "raised")


FILL = b"""def f():
    import os
    written, fd = 0, os.open('/data/x', os.O_CREAT | os.O_WRONLY)
    try:
        while True: written += os.write(fd, bytes(4096))
    except OSError:
        return f'{written}'
"""


def test_data_gets_smaller_at_hand_over(pool, runner):
    ready(pool.refill())
    cell, pooled = pool.start(Limits(data_bytes=MIB), lambda cell: None)
    assert pooled == (os.geteuid() == 0)
    assert finish(cell, runner, FILL).messages == [b"%d" % MIB]


def test_one_that_does_not_stand_yet_is_not_touched_for_a_smaller_data(pool, runner):
    """Its root may still be the host's."""
    waiting = pool.refill()
    cell, pooled = pool.start(Limits(data_bytes=MIB), lambda cell: None)
    if not pooled:
        assert cell is not waiting and waiting in pool
    assert finish(cell, runner, FILL).messages == [b"%d" % MIB]


def test_a_dead_one_is_never_handed_over(pool, runner):
    dead, alive = ready(pool.refill()), ready(pool.refill())
    dead.kill(Kind.LOST)
    deadline = time.monotonic() + 10
    while not dead.ended:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    cell, pooled = pool.start(Limits(), lambda cell: None)
    assert (cell, pooled) == (alive, True)
    assert finish(cell, runner, b"def f(): return 1").outcome.word == "returned"


def test_one_that_has_not_reported_is_waited_for_by_its_session(pool, runner):
    pool.refill()
    cell, pooled = pool.start(Limits(), lambda cell: None)
    assert pooled
    assert finish(cell, runner, b"def f(): return 1").messages == [b"1"]


def test_a_session_that_asks_for_too_little_does_not_empty_the_pool(pool, runner, jail):
    """It wants less memory than an interpreter has by the time it waits: it starts cold, and dies of its own wish."""
    if "memory" not in jail.effective:
        return  # then no limit changes at hand-over at all: test_limits_are_set_at_hand_over
    ready(pool.refill())
    ready(pool.refill())
    cell, pooled = pool.start(Limits(memory_bytes=256 * 1024), lambda cell: None)
    assert not pooled
    cell.kill(Kind.KILLED_OPERATOR)
    cell.wait(10)
    assert len(pool._cells) == 1
