"""How long a private network takes, from nothing to the first reply through an onion service, and what it weighs.

Key generation is included. `first_reply_s` is not gated on the nodes that the reply does not need; `ready_s` is on all.
The network of each run is real, of the default size, and gone after its run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from bento_tor.errors import BentoError
from bento_tor.network import Network, NetworkSettings, down, up

MIB = 1024 * 1024


@dataclass(frozen=True)
class Run:
    """One network: seconds from the call of `up`, and resident MiB of each node on average."""

    keygen_s: float
    first_reply_s: float
    ready_s: float
    rss_mb_per_node: float


def measure() -> Run:
    """Bring up one network, look at it, take it down."""
    with tempfile.TemporaryDirectory(prefix="bento-bench-") as base:
        place = Path(base) / "network"
        try:
            network = up(NetworkSettings(), place, owner_pid=os.getpid())
            times = network.timings
            return Run(times.keygen_s, times.first_reply_s, times.ready_s, resident_mib(network))
        finally:
            down(place)


def resident_mib(network: Network) -> float:
    """Resident memory per node, in MiB."""
    processes = [process for node in network.nodes if (process := network.maybe_process(node))]
    total: int = sum(psutil.Process(process.pid).memory_info().rss for process in processes)
    return total / MIB / len(processes)


def figures(runs: list[Run]) -> dict[str, float]:
    """The median of each column."""
    names = ("first_reply_s", "ready_s", "keygen_s", "rss_mb_per_node")
    return {name: round(statistics.median(getattr(run, name) for run in runs), 2) for name in names}


def spread(values: list[float]) -> str:
    """`median (lowest - highest)`"""
    return f"{statistics.median(values):6.1f}  ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="networks to bring up (default: 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    runs: list[Run] = []
    try:
        for number in range(1, options.runs + 1):
            runs.append(measure())
            last = f"first reply {runs[-1].first_reply_s:.1f} s, ready {runs[-1].ready_s:.1f} s"
            print(f"run {number} of {options.runs}: {last}", file=sys.stderr, flush=True)
    except BentoError as why:
        sys.exit(f"run {len(runs) + 1} failed: {why.message}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps({"name": "network_up", "figures": figures(runs), "ratios": {}}))
        return
    print(f"network up, {len(runs)} runs: median (lowest - highest)")
    print(f"  keys made            {spread([run.keygen_s for run in runs])} s")
    print(f"  first onion reply    {spread([run.first_reply_s for run in runs])} s")
    print(f"  all nodes ready      {spread([run.ready_s for run in runs])} s")
    print(f"  memory per node      {spread([run.rss_mb_per_node for run in runs])} MiB resident")


if __name__ == "__main__":
    main()
