"""What a box takes: how long an echo takes with 1, 50 and 200 sessions, and what idle ones cost.

A real `serve` without tor, on a socket of its own, in a network namespace of its own where that may be made (then with
the egress broker). Each session has a connection of its own and echoes once a second, spread evenly. What else runs on
the machine is in every time: the echoes of a bare socket, beside them, tell how much.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
from intervals import percentile

from bento_tor.errors import BentoError
from bento_tor.policy import manifest
from bento_tor.policy.manifest import Manifest
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import NEED_DATA, Connection, EndOfStream, Role
from bento_tor.sandbox import images

CODE = b"def echo():\n    while True:\n        api.send(api.recv())\n"
BARE = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
stream = server.accept()[0]
while data := stream.recv(65536):
    stream.sendall(data)
"""
DEADLINE_S = 120.0
# Sandboxes that are being started at once: a crowd that comes at one moment is not what is measured.
STARTING = 4
SINGLE_EVERY_S = 0.05
SESSIONS = (1, 50, 200)


class Line:
    """One connection to the box, without threads: what is measured is the box, not its client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._connection = Connection(Role.CLIENT)
        self._offset = 0

    @classmethod
    async def dial(cls, path: Path) -> Line:
        """Connected, nothing said."""
        return cls(*await asyncio.open_unix_connection(str(path)))

    def say(self, *messages: m.Message) -> None:
        """In one write."""
        self._writer.write(self._connection.send_many(messages))

    async def hear(self, kind: type[m.Message]) -> m.Message:
        """The next message of this kind; a refusal that nobody wants is an error."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event = self._connection.next_event()
                if event is NEED_DATA:
                    self._connection.receive_data(await self._reader.read(65536))
                elif isinstance(event, kind):
                    return event
                elif isinstance(event, EndOfStream | m.Refused | m.Ended):
                    raise BentoError(f"the box does not play: {event}")

    async def greet(self, digest: bytes) -> None:
        """Say Hello, under this policy."""
        self.say(m.Hello(m.VERSION, digest))
        await self.hear(m.Welcome)

    async def policy_digest(self) -> bytes:
        """What this box's policy is known by."""
        self.say(m.Hello(m.VERSION, None))
        await self.hear(m.Welcome)
        await self.hear(m.Refused)
        policy = await self.hear(m.Policy)
        assert isinstance(policy, m.Policy)
        return hashlib.sha256(policy.document).digest()

    async def store(self) -> bytes:
        """Keep the function; gives its token."""
        token = os.urandom(32)
        digest = hashlib.sha256(CODE).digest()
        said = m.Store(1, token, os.urandom(32), manifest.encode(Manifest()), len(CODE), digest)
        self.say(said, m.Chunk(1, 0, CODE))
        await self.hear(m.Stored)
        return token

    async def start(self, token: bytes) -> None:
        """A session on channel 1, which has echoed once."""
        session = os.urandom(32)
        self.say(m.Execute(1, token, session, "echo", "([], {})"), m.Open(1, session, 0))
        await self.echo()

    async def echo(self) -> float:
        """Seconds from a message to its echo."""
        began = time.perf_counter()
        self.say(m.Input(1, self._connection.next_offset(1), b"x" * 32, True, False))
        output = await self.hear(m.Output)
        took = time.perf_counter() - began
        assert isinstance(output, m.Output) and output.end
        self._offset = output.offset + 33
        self.say(m.Ack(1, self._offset, self._offset + m.INITIAL_WINDOW))
        return took

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


@contextmanager
def serving(folder: Path, sessions: int, connections: int) -> Iterator[psutil.Process]:
    """A box of its own, as a user starts it."""
    own = os.geteuid() == 0
    # With egress there is a broker, and there are rules of the kernel's: those belong into a namespace.
    egress = 'egress = ["tor"]' if own else ""
    (folder / "box.toml").write_text(
        f'clients = {connections}\nsocks = "127.0.0.1:9"\n[policy]\nsessions = {sessions}\n{egress}\n'
        "[policy.limits]\nwall_s = 3600\nmemory_bytes = 67108864\n"
    )
    command = [sys.executable, "-m", "bento_tor.cli", "serve", "--json", "--state", str(folder / "s")]
    command += ["--config", str(folder / "box.toml")]
    process = subprocess.Popen([*(["unshare", "--net"] if own else []), *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], DEADLINE_S)[0] or b"address" not in process.stdout.readline():
            raise BentoError("the box does not come up")
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def machinery(box: psutil.Process) -> list[psutil.Process]:
    """Keeper, box and broker; not the sandboxes."""
    return [box, *(child for child in box.children() if child.name() != "bwrap")]


def sandboxes(box: psutil.Process) -> list[psutil.Process]:
    """Every process of every sandbox."""
    tops = [child for child in box.children() if child.name() == "bwrap"]
    return [*tops, *(below for top in tops for below in top.children(recursive=True))]


def cpu_s(processes: list[psutil.Process]) -> float:
    """Processor seconds so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def memory_kb(processes: list[psutil.Process]) -> float:
    """Proportional memory."""
    return sum(process.memory_full_info().pss for process in processes) / 1024


async def start_sessions(path: Path, digest: bytes, token: bytes, count: int) -> list[Line]:
    """So many more, a few at a time."""
    gate = asyncio.Semaphore(STARTING)

    async def one() -> Line:
        async with gate:
            line = await Line.dial(path)
            await line.greet(digest)
            await line.start(token)
            return line

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def echoes(lines: list[Line], seconds: float) -> list[float]:
    """The times of all echoes: each session one a second, evenly spread; a single one more often, to count as many."""
    every = 1.0 if len(lines) > 1 else SINGLE_EVERY_S
    begin = time.perf_counter() + 0.1

    async def one(line: Line, place: int) -> list[float]:
        times = []
        for turn in range(int(seconds / every)):
            at = begin + (turn + place / len(lines)) * every
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            times.append(await line.echo())
        return times

    found = await asyncio.gather(*(one(line, place) for place, line in enumerate(lines)))
    return [took for times in found for took in times]


@asynccontextmanager
async def bare_echoes(folder: Path) -> AsyncIterator[list[float]]:
    """The same over a socket with nothing behind it but an echo, meanwhile: how much of a delay is the machine's."""
    path, times = folder / "bare.sock", list[float]()
    process = subprocess.Popen([sys.executable, "-c", BARE, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    reader, writer = await asyncio.open_unix_connection(str(path))

    async def ask() -> None:
        while True:
            await asyncio.sleep(SINGLE_EVERY_S)
            began = time.perf_counter()
            writer.write(b"x" * 32)
            await reader.readexactly(32)
            times.append(time.perf_counter() - began)

    asking = asyncio.create_task(ask())
    try:
        yield times
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        writer.close()
        process.kill()
        process.wait()
        process.stdout.close()


async def idle_cpu(processes: list[psutil.Process], seconds: float) -> float:
    """Percent of a core."""
    await asyncio.sleep(2)  # what began before has come to rest
    before = cpu_s(processes)
    await asyncio.sleep(seconds)
    return 100 * (cpu_s(processes) - before) / seconds


async def measure(box: psutil.Process, path: Path, seconds: float, connections: int) -> dict[str, object]:
    """Everything, against one box."""
    first = await Line.dial(path)
    digest = await first.policy_digest()
    await first.greet(digest)
    token = await first.store()
    figures = {"empty_cpu_percent": await idle_cpu(machinery(box), seconds)}
    lines: list[Line] = []
    times: dict[int, list[float]] = {}
    gc.disable()
    for count in SESSIONS:
        began, base_kb, more = time.perf_counter(), memory_kb(machinery(box)), count - len(lines)
        lines += await start_sessions(path, digest, token, more)
        if count == SESSIONS[-1]:
            figures["starts_per_s"] = more / (time.perf_counter() - began)
            figures["kb_per_idle_session"] = (memory_kb(machinery(box)) - base_kb) / more
        await asyncio.sleep(1)
        before, began = cpu_s(machinery(box)), time.perf_counter()
        async with bare_echoes(path.parent.parent) as bare:
            times[count] = await echoes(lines, seconds)
        (path.parent.parent / "bare.sock").unlink()
        figures[f"p99_bare_beside_{count}_ms"] = 1000 * percentile(bare, 0.99)
        figures[f"p50_{count}_ms"] = 1000 * statistics.median(times[count])
        figures[f"p99_{count}_ms"] = 1000 * percentile(times[count], 0.99)
        figures[f"cpu_percent_{count}"] = 100 * (cpu_s(machinery(box)) - before) / (time.perf_counter() - began)
    base_kb = memory_kb(machinery(box))
    idle = [await Line.dial(path) for _ in range(connections)]
    for line in idle:
        await line.greet(digest)
    figures["kb_per_idle_connection"] = (memory_kb(machinery(box)) - base_kb) / connections
    times[0] = await echoes(lines, seconds)
    figures["p99_200_with_idle_ms"] = 1000 * percentile(times[0], 0.99)
    for line in (*idle, *lines[100:]):
        line.close()
    figures["idle_cpu_percent"] = await idle_cpu(machinery(box), seconds)
    figures["sandboxes_idle_cpu_percent"] = await idle_cpu(sandboxes(box), seconds)
    figures["box_rss_mb"] = max(process.memory_info().rss for process in machinery(box)) / 2**20
    for line in (first, *lines[:100]):
        line.close()
    ratios = {"p99_200_over_p50_1": percentile(times[200], 0.99) / statistics.median(times[1])}
    rounded = [{name: round(value, 3) for name, value in each.items()} for each in (figures, ratios)]
    return {"name": "load", "figures": rounded[0], "ratios": rounded[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of each measurement (default: 20)")
    parser.add_argument("--connections", type=int, default=1000, metavar="N", help="idle ones (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            images.build("python", images.default_dir(), lambda text: print(text, file=sys.stderr))
            with serving(folder, SESSIONS[-1] + 10, options.connections + 1000) as box:
                told = asyncio.run(measure(box, folder / "s" / "box.sock", options.seconds, options.connections))
        except (BentoError, TimeoutError) as why:
            sys.exit(str(why) or "the box did not answer in time")
    if options.json:
        print(json.dumps(told))
        return
    for kind in ("figures", "ratios"):
        for name, value in told[kind].items():  # type: ignore[attr-defined]
            print(f"  {name:28} {value}")


if __name__ == "__main__":
    main()
