"""Transfers over a real private network in which something breaks half-way: not a byte lost, none twice, no hang.

Six faults by default; a hundred, on longer transfers, in `make soak`, which goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from bento_tor.client import Box, Function, Retries, connect, parse
from bento_tor.client.source import make_call
from bento_tor.controller.launch import launch
from bento_tor.controller.processes import ProcessId
from bento_tor.controller.streams import check_reachable
from bento_tor.errors import TorError
from bento_tor.network import Network, Node
from bento_tor.network.start import DEFAULTS_FILE

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

SOAK = bool(os.environ.get("BENTO_TOR_SOAK"))
MESSAGE_BYTES = 1_000_000
# What a job carries, in messages.
OUT, IN = (100, 30) if SOAK else (20, 6)
CODE_BYTES = 1_000_000  # a box takes 1 MiB
# A job that has not ended by then hangs. A transfer takes a fifth of it, and tor may need a minute to find a new way.
DEADLINE_S = 300.0
CONFIG = """
ready = 2
[policy.limits]
wall_s = 600
cpu_s = 600
"""
FUNCTION = """
import hashlib, random
def out(seed, count, length):
    for number in range(count):
        api.send(random.Random(seed + number).randbytes(length))
def take(count):
    taken = hashlib.sha256()
    for _ in range(count):
        message = api.recv()
        taken.update(len(message).to_bytes(8, "big") + message)
    return taken.hexdigest()
"""


def message(seed: int, number: int) -> bytes:
    return random.Random(seed + number).randbytes(MESSAGE_BYTES)


def digest(messages: Iterator[bytes] | list[bytes]) -> str:
    found = hashlib.sha256()
    for each in messages:
        found.update(len(each).to_bytes(8, "big") + each)
    return found.hexdigest()


class Job(threading.Thread):
    """One transfer, watched from outside. `part`: how much of it is done, 0 to 1."""

    def __init__(self, box: Box, function: Function, seed: int) -> None:
        super().__init__(daemon=True)
        self.box, self.function, self.seed = box, function, seed
        self.part = 0.0
        self.word = ""  # how it ended
        self.maybe_failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.word = self.carry()
        except BaseException as failure:
            self.maybe_failure = failure

    def carry(self) -> str:
        raise NotImplementedError

    def ended_as(self, outcome) -> str:
        assert outcome.word == "returned" or outcome.detail, "an end without a sentence"
        return outcome.word


class OutputJob(Job):
    """The function sends; each message is compared as a whole."""

    def carry(self) -> str:
        got = hashlib.sha256()
        with self.function.start(make_call("out", self.seed, OUT, MESSAGE_BYTES)) as session:
            for number in range(OUT):
                received = bytearray()
                while True:
                    piece = session.maybe_piece()
                    if piece is None:
                        # Only a box that was killed may end it early; what it delivered is a true beginning.
                        assert message(self.seed, number).startswith(received), "the delivered prefix is not intact"
                        return self.ended_as(session.wait())
                    received += piece.data
                    self.part = (number + len(received) / MESSAGE_BYTES) / OUT
                    if piece.end:
                        break
                got.update(len(received).to_bytes(8, "big") + received)
            assert got.hexdigest() == digest(message(self.seed, number) for number in range(OUT)), "other bytes"
            assert session.maybe_piece() is None, "more than was sent"
            return self.ended_as(session.wait())


class InputJob(Job):
    """The function takes, and tells the digest of what it got."""

    def carry(self) -> str:
        with self.function.start(make_call("take", IN)) as session:
            for number in range(IN):
                if not session.send(message(self.seed, number)):
                    break
                self.part = (number + 1) / IN
            told = session.maybe_receive()
            outcome = session.wait()
            expected = digest(message(self.seed, number) for number in range(IN))
            assert outcome.word != "returned" or told == expected.encode(), "the function got other bytes"
            return self.ended_as(outcome)


class CodeJob(Job):
    """A function of a megabyte is stored, and run. How far its upload is cannot be seen; it takes about as long as the
    parts below say."""

    SECONDS = 0.6

    def carry(self) -> str:
        text = f"TEXT = {random.Random(self.seed).randbytes(CODE_BYTES // 2 - 200).hex()!r}\n"
        text += "import hashlib\ndef f(): return hashlib.sha256(TEXT.encode()).hexdigest()\n"
        watch = threading.Thread(target=self.count, daemon=True)
        watch.start()
        stored = self.box.upload(parse("f", text))
        with stored.start(make_call("f")) as session:
            told = session.maybe_receive()
            outcome = session.wait()
        expected = hashlib.sha256(random.Random(self.seed).randbytes(CODE_BYTES // 2 - 200).hex().encode())
        assert outcome.word != "returned" or told == expected.hexdigest().encode(), "the code is another"
        return self.ended_as(outcome)

    def count(self) -> None:
        begun = time.monotonic()
        while self.part < 1.0 and self.is_alive():
            self.part = min(1.0, (time.monotonic() - begun) / self.SECONDS)
            time.sleep(0.005)


class World:
    """The network, its processes as they are now, and a box."""

    def __init__(self, network: Network, new_box: Callable[..., object]) -> None:
        self.network = network
        self.user, self.host = network.clients
        self.processes: dict[str, ProcessId] = {}
        self._new_box = new_box
        self.start_box()
        self.address = self.box.told["address"]
        self.wait_healed()

    def wait_healed(self) -> None:
        """Until a first visit gets through. Directories keep an onion service's descriptor in memory only: where those
        were killed that had it, nobody finds the service before its tor publishes anew, whatever the client does."""
        check_reachable(self.user.socks, self.address, 80, timeout_s=DEADLINE_S)

    def start_box(self) -> None:
        self.box = self._new_box("--publish", "--control", str(self.host.control), config=CONFIG)

    def process(self, node: Node) -> ProcessId:
        process = self.processes.get(node.name) or self.network.maybe_process(node)
        assert process is not None
        return process

    def restart(self, node: Node) -> None:
        """Killed without a word, and started again as it was."""
        pid = self.process(node).pid
        os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        defaults = self.network.directory / DEFAULTS_FILE
        again = launch(node.name, node.torrc, control=node.control, log=node.log, defaults=defaults)
        self.processes[node.name] = again.process

    def circuits(self) -> list[str]:
        """The circuits of the streams to the box."""
        with self.network.connect(self.user) as tor:
            lines = [line.split() for line in tor.get_info("stream-status").splitlines()]
        return [words[2] for words in lines if len(words) > 3 and words[3].startswith(self.address)]

    def middle(self) -> Node | None:
        """The relay in the middle of the client's way; None where there is no way at the moment."""
        circuits = self.circuits()
        with self.network.connect(self.user) as tor:
            for line in tor.get_info("circuit-status").splitlines():
                words = line.split()
                if words[0] in circuits and words[1] == "BUILT":
                    return self.network.node(words[2].split(",")[1].partition("~")[2])
        return None


# --- the faults ---------------------------------------------------------------------------------------------------


def close_circuit(world: World, rng: random.Random) -> bool:
    circuits = world.circuits()
    with world.network.connect(world.user) as tor:
        closed = [tor.msg(f"CLOSECIRCUIT {number}").ok for number in circuits]
    return any(closed)


def kill_client_tor(world: World, rng: random.Random) -> bool:
    world.restart(world.user)
    return True


def kill_middle_relay(world: World, rng: random.Random) -> bool:
    node = world.middle()
    if node is not None:
        world.restart(node)
    return node is not None


def stall(world: World, rng: random.Random) -> bool:
    node = world.middle()
    if node is None:
        return False
    pid = world.process(node).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(0.5, 4.0))  # how long it stands still
    finally:
        os.kill(pid, signal.SIGCONT)
    return True


def kill_box(world: World, rng: random.Random) -> bool:
    victim = world.box.process.pid if rng.random() < 0.5 else world.box.reader().pid
    os.kill(victim, signal.SIGKILL)
    world.box.process.wait(timeout=30)
    world.start_box()
    assert world.box.told["address"] == world.address
    return True


FAULTS = [close_circuit, kill_client_tor, kill_middle_relay, stall, kill_box]
JOBS = [OutputJob, InputJob, CodeJob]
# Each fault in each kind of job, the long outputs most often. The first six have each fault once, each job twice.
FIRST = [
    (OutputJob, close_circuit),
    (InputJob, kill_client_tor),
    (CodeJob, close_circuit),
    (InputJob, stall),
    (OutputJob, kill_middle_relay),
    (OutputJob, kill_box),
]


def chosen(number: int, rng: random.Random) -> tuple[type[Job], Callable[[World, random.Random], bool]]:
    if number < len(FIRST):
        return FIRST[number]
    return rng.choice([OutputJob, *JOBS]), rng.choice(FAULTS)


def test_faults_half_way_lose_nothing_and_double_nothing(own_network: Network, new_box, rounds) -> None:
    world = World(own_network, new_box)
    done: list[str] = []
    told: list[object] = []
    for number, rng in rounds(len(FIRST), 100):
        world.wait_healed()
        kind, fault = chosen(number, rng)
        point, seed = rng.uniform(0.02, 0.9), rng.randrange(2**32)
        retries = Retries(most=1000)  # the bound for a box that hangs up on purpose is not what is tried here
        with connect(
            world.address,
            socks=str(world.user.socks),
            # tor gives up on a stream after 120 s (SocksTimeout), for instance where it knows the descriptor of a box
            # that was killed; who waits no longer than that has no second try.
            timeout_s=DEADLINE_S - 30,
            retries=retries,
            on_reconnect=told.append,
        ) as box:
            function = box.upload(parse("f", FUNCTION))
            begun = time.monotonic()
            job = kind(box, function, seed)
            job.start()
            struck = strike(world, job, point, fault, rng)
            job.join(timeout=max(0.0, begun + DEADLINE_S - time.monotonic()))
            what = f"{kind.__name__} {fault.__name__} at {point:.2f}"
            assert not job.is_alive(), f"{what}: it hangs\n{stack_of(job)}"
            if job.maybe_failure is not None:
                raise AssertionError(what) from job.maybe_failure
            # A kill of the box loses the session, and nothing else; whoever was not running then is not touched.
            expected = ("lost", "returned") if fault is kill_box else ("returned",)
            assert job.word in expected, f"{what}: {job.word}"
            # The function is there, and works.
            assert list(function.start(make_call("out", seed, 1, 10))) == [random.Random(seed).randbytes(10)]
            done.append(f"{what}: {'struck' if struck else 'too late'}, {job.word}, {time.monotonic() - begun:.1f} s")
            print(done[-1], flush=True)
    assert sum("struck" in line for line in done) * 2 > len(done), done
    assert all(each.why for each in told), "a reconnection without a sentence"


def strike(world: World, job: Job, point: float, fault: Callable[..., bool], rng: random.Random) -> bool:
    """Do it when the job is that far. False: there was nothing to break."""
    deadline = time.monotonic() + DEADLINE_S
    while job.is_alive() and job.part < point and time.monotonic() < deadline:
        time.sleep(0.002)
    if not job.is_alive():
        return False
    try:
        return fault(world, rng)
    except TorError:
        # A client's tor that has just come up may not answer yet.
        return False


def stack_of(job: Job) -> str:
    """Where it stands."""
    frame = sys._current_frames().get(job.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
