"""How many round trips a whole run takes over a warm circuit, beside the one-after-another of 2021.

A run is everything from opening the stream to the first byte of the function's output: store, execute and open
included. Its measure is the echo of a small message on an open stream of the same circuit, taken just before it. The
floor is 1: the output depends on the request. The other sequence waits for each answer before it goes on: connected,
stored, started, opened. Both take turns, over an onion service and over an ordinary exit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

import lab
from lab import BOX, Lab, Way, echo
from steps import Step

from bento_tor.client import parse
from bento_tor.errors import BentoError
from bento_tor.policy import manifest as manifests
from bento_tor.protocol import messages as m

SOURCE = parse("hello", "def hello():\n    api.send('x')\n")
ECHOES = 3


@dataclass
class Times:
    """Round trips that each took, and the echo's seconds."""

    run: list[float] = field(default_factory=list)
    one_by_one: list[float] = field(default_factory=list)
    echo_s: list[float] = field(default_factory=list)


def run_s(at: Lab, way: Way, identity: str) -> float:
    """Seconds of a whole run, to its first output."""
    begun = time.perf_counter()
    with at.box(way, identity) as box, box.run(SOURCE) as session:
        if session.maybe_piece() is None:
            raise BentoError(f"the function ended without a word: {session.wait()}")
        took = time.perf_counter() - begun
        at.one_circuit(way)
        session.wait()
    return took


def one_by_one_s(at: Lab, way: Way, identity: str) -> float:
    """Seconds of the same, one after another."""
    invocation, shutdown, session = (os.urandom(m.TOKEN_BYTES) for _ in range(3))
    code, manifest = SOURCE.text.encode(), manifests.encode(SOURCE.manifest)
    store = m.Store(1, invocation, shutdown, manifest, len(code), hashlib.sha256(code).digest())
    begun = time.perf_counter()
    with at.stream(way, identity, BOX) as sock:
        step = Step(sock)
        step.ask(m.Stored, m.Hello(m.VERSION, at.policy_digest), store, m.Chunk(1, 0, code))
        step.ask(m.Started, m.Execute(2, invocation, session, "hello", "([], {})"))
        step.ask(m.Output, m.Open(2, session, 0))
        took = time.perf_counter() - begun
        at.one_circuit(way)
    return took


def measure(at: Lab, way: Way, runs: int) -> Times:
    """Runs of both kinds in turn, on one circuit."""
    times = Times()
    identity = f"bench {way.name}"
    with at.raw(way, identity, b"e") as open_stream:
        run_s(at, way, identity)
        for number in range(1, runs + 1):
            for kept, once in ((times.run, run_s), (times.one_by_one, one_by_one_s)):
                round_trip = min(echo(open_stream) for _ in range(ECHOES))
                times.echo_s.append(round_trip)
                kept.append(once(at, way, identity) / round_trip)
            lab.say(f"{way.name}: {number} of {runs}")
    return times


def spread(values: list[float]) -> str:
    """`median (lowest - highest)`"""
    return f"{statistics.median(values):6.2f}  ({min(values):.2f} - {max(values):.2f})"


def report(all_times: dict[str, Times], delay_ms: float, *, as_json: bool) -> None:
    """Print it."""
    middle = {name: statistics.median(times.run) for name, times in all_times.items()}
    ratios = {f"run_over_rtt_{name}": round(value, 3) for name, value in middle.items()}
    ratios |= {
        "sequence_2021_over_rtt": round(statistics.median(all_times["onion"].one_by_one), 3),
        "sequence_2021_over_rtt_exit": round(statistics.median(all_times["exit"].one_by_one), 3),
    }
    if delay_ms:
        # Of one link, there and back: what the length of a circuit costs. The exit route's is as long as any exit's.
        ratios |= {
            f"rtt_over_link_{name}": round(1000 * statistics.median(times.echo_s) / (2 * delay_ms), 2)
            for name, times in all_times.items()
        }
    figures = {f"rtt_ms_{name}": round(1000 * statistics.median(t.echo_s), 1) for name, t in all_times.items()}
    if as_json:
        print(json.dumps({"name": "roundtrips", "figures": figures, "ratios": ratios}))
        return
    print(f"round trips of one warm circuit, {delay_ms:g} ms each way per link: median (lowest - highest)")
    for name, times in all_times.items():
        print(f"  {name:6} echo                 {spread([1000 * s for s in times.echo_s])} ms")
        print(f"         a whole run          {spread(times.run)} echoes")
        print(f"         one after another    {spread(times.one_by_one)} echoes")
    for name, value in ratios.items():
        print(f"  {name:28} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="runs of each kind and way (default: 20)")
    parser.add_argument("--delay-ms", type=float, default=20.0, metavar="MS", help="of a link, each way (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        lab.enter_namespace()
        with lab.open_lab(delay_ms=options.delay_ms) as at:
            all_times = {name: measure(at, way, options.runs) for name, way in at.ways.items()}
    except BentoError as why:
        sys.exit(why.message)
    except KeyboardInterrupt:
        sys.exit(130)
    report(all_times, options.delay_ms, as_json=options.json)


if __name__ == "__main__":
    main()
