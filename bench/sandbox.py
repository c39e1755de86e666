"""How fast a function starts, over a bare interpreter measured in the same run, and what an idle one weighs.

A start is the time from asking a real keeper to the first byte of the function's output. Bare interpreter, ready pool
and cold start take turns, so that all three meet the same machine; `bare_p99` tells how far that machine scatters
by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from intervals import percentile

from bento_tor.errors import BentoError
from bento_tor.policy.limits import Limits
from bento_tor.sandbox import frames, images, wire
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.keeper import Keeper

MIB = 1024 * 1024
CODE = frames.encode_code("f", "([], {})", b"def f():\n    return 'x'\n")
WAITING = frames.encode_code("f", "([], {})", b"def f():\n    api.recv()\n")
READY_BYTES = frames.HEADER.size
POOL = 4
DEADLINE_S = 30.0
REST_S = 0.05  # the kernel counts CPU time in 0.01 s


@dataclass
class Times:
    """Seconds of each start."""

    bare: list[float] = field(default_factory=list)
    pool: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)


class Client:
    """The box's side of a keeper, one session at a time."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock, self.pid, self._number = sock, pid, 0

    def start(self, code: bytes) -> tuple[bool, socket.socket, int]:
        """Ask for a session and hand it its code: whether it was ready before, its control socket, its log."""
        self._number += 1
        self._sock.send(wire.encode_request(wire.Start(self._number, Limits())))
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, wire.REPLY_BYTES, 2)
            reply = wire.decode_reply(data)
            if isinstance(reply, wire.Started):
                break
            if not isinstance(reply, wire.Ended):
                raise BentoError(f"no session: {reply}")
        control = socket.socket(fileno=fds[0])
        control.settimeout(DEADLINE_S)
        control.sendall(code)
        return reply.pooled, control, fds[1]

    def run(self) -> tuple[float, bool]:
        """One session: seconds to its first byte of output, and whether it was ready before."""
        began = time.perf_counter()
        pooled, control, log = self.start(CODE)
        received = b""
        while len(received) <= READY_BYTES:
            piece = control.recv(4096)
            if not piece:
                raise BentoError("the function ended without a word")
            received += piece
        took = time.perf_counter() - began
        control.close()
        os.close(log)
        while not isinstance(wire.decode_reply(self._sock.recv(wire.REPLY_BYTES)), wire.Ended):
            pass
        return took, pooled


@contextmanager
def keeping(image: images.Image, pool_size: int, sessions: int = 8) -> Iterator[Client]:
    """A real keeper in a process of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        with Jail(image) as jail:
            Keeper(theirs, jail, pool_size=pool_size, max_sessions=sessions).run(os.eventfd(0))
        os._exit(0)
    theirs.close()
    try:
        yield Client(ours, pid)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def bare(python: str) -> float:
    """Seconds of the interpreter alone."""
    began = time.perf_counter()
    subprocess.run([python, "-I", "-c", "pass"], env={}, check=True)
    return time.perf_counter() - began


def measure(image: images.Image, runs: int) -> Times:
    """The three in turn."""
    times = Times()
    with keeping(image, POOL) as warm, keeping(image, 0) as cold:
        cold.run()
        for _ in range(runs):
            times.bare.append(bare(image.python))
            times.cold.append(cold.run()[0])
            times.pool.append(ready_start(warm))
    return times


def ready_start(client: Client) -> float:
    """Seconds of a start from the pool: an arrival at a box whose pool is full again and at rest."""
    keeper = psutil.Process(client.pid)
    deadline = time.monotonic() + DEADLINE_S
    before = None
    while time.monotonic() < deadline:
        time.sleep(REST_S)
        used = cpu_s(keeper)
        if len(keeper.children()) == POOL and used == before:
            took, pooled = client.run()
            if pooled:
                return took
        before = used
    raise BentoError("the pool does not fill")


def cpu_s(process: psutil.Process) -> float:
    """What a process and all below it have used of the CPU, in seconds."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:2])
    return total


def starts_per_s(image: images.Image, seconds: float) -> float:
    """Whole sessions one after another, as fast as they go, with a pool that gets no quiet moment."""
    with keeping(image, POOL) as client:
        began, count = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            client.run()
            count += 1
        return count / (time.perf_counter() - began)


def pss_mb(image: images.Image, functions: int) -> float:
    """Proportional memory of one idle function with all its processes, in MiB, of `functions` at once."""
    kept = []
    with keeping(image, 0, functions) as client:
        for _ in range(functions):
            kept.append(client.start(WAITING))
        time.sleep(1)
        children = psutil.Process(client.pid).children(recursive=True)
        total = sum(child.memory_full_info().pss for child in children)
    for _, control, log in kept:
        control.close()
        os.close(log)
    return float(total) / functions / MIB


def stolen_part(before: Any, after: Any) -> float:
    """Of the CPU time that this machine asked for, the part that its host gave to others: with it the tails grow."""
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    busy = spent["user"] + spent["system"] + spent["steal"]
    return float(spent["steal"] / busy) if busy else 0.0


def summary(times: Times, stolen: float, per_s: float, weight: float) -> dict[str, object]:
    """The object that --json prints."""
    base = statistics.median(times.bare)
    ratios = {
        "pool_p50": statistics.median(times.pool) / base,
        "pool_p99": percentile(times.pool, 0.99) / base,
        "cold_p50": statistics.median(times.cold) / base,
        "bare_p99": percentile(times.bare, 0.99) / base,
    }
    figures = {"bare_ms": base * 1000, "stolen": stolen, "starts_per_s": per_s, "pss_mb": weight}
    rounded = [{name: round(value, 3) for name, value in each.items()} for each in (figures, ratios)]
    return {"name": "sandbox", "figures": rounded[0], "ratios": rounded[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, metavar="N", help="starts of each kind (default: 300)")
    parser.add_argument("--functions", type=int, default=100, metavar="N", help="idle ones to weigh (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        image = images.build("python", images.default_dir(), lambda text: print(text, file=sys.stderr))
        before = psutil.cpu_times()
        times = measure(image, options.runs)
        told = summary(
            times, stolen_part(before, psutil.cpu_times()), starts_per_s(image, 5.0), pss_mb(image, options.functions)
        )
    except BentoError as why:
        sys.exit(why.message)
    if options.json:
        print(json.dumps(told))
        return
    for kind in ("figures", "ratios"):
        for name, value in told[kind].items():  # type: ignore[attr-defined]
            print(f"  {name:14} {value}")


if __name__ == "__main__":
    main()
