"""The keeper in a process of its own, and the box's link to it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bento_tor.errors import ConfigError, SandboxError
from bento_tor.policy.limits import MIB, Limits
from bento_tor.policy.outcome import Kind, judge
from bento_tor.sandbox import frames, wire
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper, clamp
from bento_tor.sandbox.link import KeeperLink

pytestmark = pytest.mark.sandbox

FOREVER = b"import time\ndef f():\n  while True: time.sleep(1)"


class Running:
    """A keeper at work: the box's end of its socket, what stops it, and its process."""

    def __init__(self, sock: socket.socket, stop_fd: int, pid: int) -> None:
        self.sock, self.stop_fd, self.pid = sock, stop_fd, pid
        self.fds: list[int] = []  # of its sessions

    def stop(self) -> None:
        os.eventfd_write(self.stop_fd, 1)

    def ended(self, timeout_s: float = 10.0) -> int:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise TimeoutError("the keeper does not end")


@contextmanager
def keeping(image, **settings) -> Iterator[Running]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            with Jail(image) as jail:
                Keeper(theirs, jail, **settings).run(stop_fd)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    running = Running(ours, stop_fd, pid)
    try:
        yield running
    finally:
        for fd in running.fds:
            os.close(fd)
        running.sock.close()
        if running.pid:
            assert running.ended() == 0
        os.close(stop_fd)
        assert not list(Path("/sys/fs/cgroup").glob(f"**/bento-tor-{pid}-*"))


async def talk_to(cell, runner, source, then=b""):
    """Run `source` in a linked cell; what it said."""
    try:
        code = frames.encode_code("f", "([], {})", source)
        return await asyncio.to_thread(runner.converse, cell.control, cell.log_fd, code + then)
    finally:
        cell.control.close()
        os.close(cell.log_fd)


def session(image, runner, source, *, limits=None, during=None, **settings):
    """One session by link and keeper, to its outcome."""

    async def run(sock):
        link = KeeperLink(sock)
        link.open()
        cell = await link.start(limits or Limits())
        if during is not None:
            during(link, cell)
        talk = await talk_to(cell, runner, source)
        seen = await asyncio.wait_for(link.ended(cell.number), 10)
        talk.outcome = judge(talk.said, seen, ready=talk.ready)
        link.close()
        return talk

    with keeping(image, **settings) as keeper:
        return asyncio.run(run(keeper.sock))


def test_a_session_through_keeper_and_link(image, runner, nothing_left):
    talk = session(image, runner, b"def f():\n  print('x')\n  return 17")
    assert (talk.messages, talk.log, talk.outcome.word) == ([b"17"], b"x\n", "returned")


def test_the_box_can_make_it_look_and_hears_why_not(image):
    """And no more: the request has no room for what to look for."""

    def look() -> None:
        looks.append(None)
        if len(looks) == 2:
            raise ConfigError("the list cannot be read")

    looks: list[None] = []

    async def run(sock):
        link = KeeperLink(sock)
        link.open()
        await asyncio.wait_for(link.look(), 30)
        with pytest.raises(SandboxError, match="the list cannot be read"):
            await asyncio.wait_for(link.look(), 30)
        await asyncio.wait_for(link.look(), 30)
        waiting = asyncio.create_task(link.look())
        await asyncio.sleep(0)
        link.close()
        with pytest.raises(SandboxError, match="has gone"):
            await asyncio.wait_for(waiting, 30)

    with keeping(image, maybe_look=look) as keeper:
        asyncio.run(run(keeper.sock))


def test_a_box_that_says_so_ends_by_order_and_another_by_itself(image):
    """A keeper whose box has ended unasked must be able to say that something is wrong."""
    for ordered in (True, False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with Jail(image) as jail:
            keeper = Keeper(theirs, jail, pool_size=0)
            if ordered:
                ours.send(wire.encode_request(wire.Leave()))
            ours.close()
            keeper.run(stop_fd := os.eventfd(0, os.EFD_CLOEXEC))
            os.close(stop_fd)
        theirs.close()
        assert keeper.leaving is ordered


def test_what_never_ends_is_killed_by_the_clock(image, runner, nothing_left):
    """Fault 5 of 2021: nothing was ever killed."""
    began = time.monotonic()
    talk = session(image, runner, FOREVER, limits=Limits(wall_s=1))
    assert talk.outcome.word == "killed:time"
    assert 1 <= time.monotonic() - began < 30


def test_the_ceiling_is_the_keepers_whatever_the_box_asks_for(image, runner, nothing_left):
    asked = Limits(memory_bytes=2**70, pids=2**40, wall_s=2**40, data_bytes=0, open_files=0, cpu_percent=50)
    talk = session(image, runner, FOREVER, limits=asked, ceiling=Limits(wall_s=1, memory_bytes=64 * MIB))
    assert talk.outcome.word == "killed:time"
    assert clamp(asked, Limits()) == Limits(cpu_percent=50, data_bytes=1, open_files=1)


@pytest.mark.parametrize("reason", [Kind.KILLED_USER, Kind.KILLED_OPERATOR, Kind.KILLED_OUTPUT, Kind.KILLED_POLICY])
def test_the_box_ends_a_session_for_a_reason(image, runner, nothing_left, reason):
    def during(link, cell):
        link.kill(cell.number, reason)
        link.kill(cell.number, Kind.KILLED_MEMORY)  # the first reason stays
        link.kill(99, reason)

    assert session(image, runner, FOREVER, during=during).outcome.kind is reason


def test_a_memory_bomb_is_told_from_a_crash(image, runner, nothing_left, jail):
    talk = session(
        image,
        runner,
        b"def f():\n  kept = []\n  while True: kept.append(bytearray(1 << 20))",
        limits=Limits(memory_bytes=48 * MIB),
    )
    assert talk.outcome.word == ("killed:memory" if "memory" in jail.effective else "raised")


def test_no_more_sessions_than_may(image, runner, nothing_left):
    async def run(sock):
        link = KeeperLink(sock)
        link.open()
        cells = await asyncio.gather(link.start(Limits()), link.start(Limits()))
        with pytest.raises(SandboxError, match="as many functions run as may"):
            await link.start(Limits())
        link.kill(cells[0].number, Kind.KILLED_USER)
        await link.ended(cells[0].number)
        cells.append(await link.start(Limits()))
        for cell in cells:
            cell.control.close()
            os.close(cell.log_fd)
        link.close()

    with keeping(image, max_sessions=2) as keeper:
        asyncio.run(run(keeper.sock))


def test_a_start_that_nobody_waits_for_is_ended(image, nothing_left):
    async def run(sock):
        link = KeeperLink(sock)
        link.open()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(link.start(Limits()), 0.0001)
        cell = await link.start(Limits())
        link.kill(cell.number, Kind.KILLED_USER)
        await link.ended(cell.number)
        cell.control.close()
        os.close(cell.log_fd)
        link.close()

    with keeping(image) as keeper:
        asyncio.run(run(keeper.sock))


def test_the_keeper_has_sandboxes_ready(image, runner, nothing_left):
    """When it is quiet it refills; the box is told which start was which."""

    async def run(sock):
        link = KeeperLink(sock)
        link.open()
        deadline = time.monotonic() + 20
        while not link.pool_hits:
            assert time.monotonic() < deadline
            cell = await link.start(Limits(wall_s=5))
            talk = await talk_to(cell, runner, b"def f(): return 17")
            assert talk.messages == [b"17"]
            await asyncio.wait_for(link.ended(cell.number), 10)
            await asyncio.sleep(0.05)
        assert cell.pooled
        link.close()

    with keeping(image, pool_size=2) as keeper:
        asyncio.run(run(keeper.sock))


MALFORMED = [b"x", bytes(wire.REQUEST_BYTES), b"\xff" * wire.REQUEST_BYTES, b"\x01" * (wire.REQUEST_BYTES + 1)]


@pytest.mark.parametrize("request_", MALFORMED, ids=["short", "zeros", "ones", "long"])
def test_what_is_no_request_ends_everything(image, nothing_left, request_):
    with keeping(image) as keeper:
        start(keeper, 1)
        keeper.sock.send(request_)
        assert next_reply(keeper.sock) == wire.Ended(1, wire.Seen(137, Kind.KILLED_OPERATOR))
        assert keeper.ended() == 0


def test_the_end_of_the_box_ends_all_sessions(image, nothing_left):
    with keeping(image) as keeper:
        pids = [start(keeper, number) for number in (1, 2)]
        keeper.sock.close()
        assert keeper.ended() == 0
        assert pids


def test_a_stop_ends_all_sessions_and_says_so(image, nothing_left):
    with keeping(image) as keeper:
        start(keeper, 1)
        keeper.stop()
        assert next_reply(keeper.sock) == wire.Ended(1, wire.Seen(137, Kind.KILLED_OPERATOR))
        assert keeper.ended() == 0


def test_a_number_in_use_starts_nothing(image, nothing_left):
    with keeping(image) as keeper:
        start(keeper, 7)
        keeper.sock.send(wire.encode_request(wire.Start(7, Limits())))
        assert next_reply(keeper.sock) == wire.Failed(7, "this session number is in use")


def test_sandboxes_die_with_a_keeper_that_is_killed(image, jail, nothing_left):
    """kill -9 of the keeper: the kernel ends its sandboxes; the next keeper sweeps up what is left on disk."""
    with keeping(image, pool_size=0) as keeper:
        start(keeper, 1)
        family = psutil.Process(keeper.pid).children(recursive=True)
        assert len(family) >= 2
        psutil.Process(keeper.pid).kill()
        assert keeper.ended() == -9
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        with Jail(image):
            pass  # opening is what sweeps


def test_the_link_tells_that_the_keeper_has_gone(image, nothing_left):
    async def run(keeper):
        link = KeeperLink(keeper.sock)
        link.open()
        cell = await link.start(Limits())
        keeper.stop()
        assert judge(None, await asyncio.wait_for(link.ended(cell.number), 10)).kind is Kind.KILLED_OPERATOR
        while link.is_open:
            await asyncio.sleep(0.01)
        with pytest.raises(SandboxError, match="keeper"):
            await link.start(Limits())
        cell.control.close()
        os.close(cell.log_fd)

    with keeping(image) as keeper:
        asyncio.run(asyncio.wait_for(run(keeper), 20))


def start(keeper: Running, number: int) -> int:
    keeper.sock.send(wire.encode_request(wire.Start(number, Limits())))
    data, fds, _, _ = socket.recv_fds(keeper.sock, wire.REPLY_BYTES, 2)
    keeper.fds += fds  # closed, its function would end by itself
    assert wire.decode_reply(data) == wire.Started(number)
    assert len(fds) == 2
    return number


def next_reply(sock: socket.socket):
    sock.settimeout(10)
    return wire.decode_reply(sock.recv(wire.REPLY_BYTES))
