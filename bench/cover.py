"""What a cover hides: the client's link recorded for a minute, idle and busy, and how far the two are apart.

A recorder between the client's tor and its guards notes TLS records (recorder.py). For each direction: the bytes in
each window of 100 ms, as two histograms, and their distance: total variation (the most by which a guess from one window
can be better than chance, 0 to 1; in bins of one cell) and Kolmogorov-Smirnov. Beside them the distance between two
idle minutes, which is what chance and this machine's other load alone make, and, as a control, idle and busy without a
cover. Busy means pieces of 1 to 6 kB at random times, echoed by the box. Small distances hold for this machine's noise:
a less busy one has less to hide a difference in. A picture needs matplotlib: `pip install bento-tor[bench]`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import lab
from lab import Lab

from bento_tor.client import Session, load
from bento_tor.client.cover import Cover, Pace
from bento_tor.errors import BentoError

WINDOW_S = 0.1
BIN_BYTES = 514
WAYS = ("up", "down")
_SETTLE_S = 3.0  # the circuit's slow start, and what goes with the beginning
_GAP_S = 0.08  # between pieces, on average
_MOST_PIECE_BYTES = 6_000


@dataclass(frozen=True)
class Minute:
    """One recording: bytes in each window, by direction."""

    name: str
    counts: dict[str, list[int]]


def covered(at: Lab, pace: Pace, *, busy: bool) -> tuple[float, float]:
    """A cover from its beginning to its end; the part of it that is looked at."""
    with at.box(at.ways["onion"], f"cover {time.monotonic()}") as box:
        session = box.run(load("cover"), pace.call())
        begun = time.monotonic()
        with Cover(session, pace) as cover:
            if busy:
                talk(cover.send, begun + pace.seconds - _SETTLE_S)
            came = sum(map(len, cover))
        if session.wait().word != "returned" or busy != (came > 0):
            raise BentoError(f"the cover failed: {session.wait()}, {came} bytes came")
    return begun + _SETTLE_S, begun + pace.seconds - 1


def bare(at: Lab, pace: Pace, *, busy: bool) -> tuple[float, float]:
    """The same without a cover: an echo."""
    with at.box(at.ways["onion"], f"bare {time.monotonic()}") as box:
        session = box.run(load("echo"))
        session.wait_attached()
        begun = time.monotonic()
        end = begun + pace.seconds
        threading.Thread(target=_drain, args=(session,), daemon=True).start()
        if busy:
            talk(session.send, end - _SETTLE_S)
        time.sleep(end - time.monotonic())
        session.end()
    return begun + _SETTLE_S, end - 1


def _drain(session: Session) -> None:
    with suppress(BentoError):
        for _ in session:
            pass


def talk(send: Callable[[bytes], object], until: float) -> None:
    """Pieces of data at random times, from a thread."""
    chance = random.Random(7)

    def run() -> None:
        with suppress(BentoError):
            while (now := time.monotonic()) < until:
                send(bytes(chance.randint(1000, _MOST_PIECE_BYTES)))
                time.sleep(min(chance.expovariate(1 / _GAP_S), max(0.0, until - now)))

    threading.Thread(target=run, daemon=True).start()


def windows(file: Path, begin: float, end: float) -> dict[str, list[int]]:
    """Bytes in each window, from the recorder's lines."""
    found = {way: [0] * int((end - begin) / WINDOW_S) for way in WAYS}
    for line in file.read_text().splitlines():
        at, way, size, _ = line.split()
        number = math.floor((float(at) - begin) / WINDOW_S)
        if 0 <= number < len(found[way]):
            found[way][number] += int(size)
    return found


def total_variation(one: Sequence[int], other: Sequence[int]) -> float:
    """Half the sum of the differences of the two histograms, in bins of one cell."""
    bins = [Counter(round(value / BIN_BYTES) for value in values) for values in (one, other)]
    return sum(abs(bins[0][key] / len(one) - bins[1][key] / len(other)) for key in bins[0].keys() | bins[1].keys()) / 2


def kolmogorov_smirnov(one: Sequence[int], other: Sequence[int]) -> float:
    """The largest difference of the two distribution functions."""
    a, b = sorted(one), sorted(other)
    return max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in {*a, *b})


def measure(at: Lab, pace: Pace, file: Path) -> list[Minute]:
    """All recordings; idle and busy in turn."""
    plan = [("idle", covered, False), ("busy", covered, True), ("idle again", covered, False)]
    plan += [("busy again", covered, True), ("bare idle", bare, False), ("bare busy", bare, True)]
    found = []
    for name, once, busy in plan:
        lab.say(f"{name}: {pace.seconds:g} seconds")
        begin, end = once(at, pace, busy=busy)
        found.append(Minute(name, windows(file, begin, end)))
    return found


def report(minutes: Sequence[Minute], pace: Pace, *, as_json: bool) -> None:
    """Print it."""
    by_name = {minute.name: minute.counts for minute in minutes}
    pairs = [("idle", "busy"), ("idle", "idle again"), ("busy", "busy again"), ("bare idle", "bare busy")]
    figures: dict[str, float] = {"rate": pace.rate, "slot_bytes": pace.slot_bytes}
    for way in WAYS:
        for name in by_name:
            figures[f"{name.replace(' ', '_')}_{way}_bytes_per_s"] = round(_mean(by_name[name][way]) / WINDOW_S)
        for one, other in pairs:
            word = f"{one}_{other}_{way}".replace(" ", "_")
            figures[f"tv_{word}"] = round(total_variation(by_name[one][way], by_name[other][way]), 4)
            figures[f"ks_{word}"] = round(kolmogorov_smirnov(by_name[one][way], by_name[other][way]), 4)
    if as_json:
        print(json.dumps({"name": "cover", "figures": figures, "ratios": {}}))
        return
    count = len(by_name["idle"]["up"])
    print(f"{pace.slot_bytes} bytes each way every 50 ms for {pace.seconds:g} s; {count} windows of 100 ms of the link")
    for way in WAYS:
        rates = ", ".join(f"{name} {_mean(by_name[name][way]) / WINDOW_S:.0f}" for name in by_name)
        print(f"  {way:5} bytes a second on the link: {rates}")
        for one, other in pairs:
            word = f"{one}_{other}_{way}".replace(" ", "_")
            print(f"        {one} / {other}: total variation {figures[f'tv_{word}']}, KS {figures[f'ks_{word}']}")
    print(f"        (KS of two like samples of this size stays below {1.36 * math.sqrt(2 / count):.3f} 19 times in 20)")


def draw(minutes: Sequence[Minute], file: Path) -> None:
    """The two histograms of each direction."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_name = {minute.name: minute.counts for minute in minutes}
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6), sharey="row")
    for row, way in zip(axes, WAYS, strict=True):
        for axis, (one, other), title in (
            (row[0], ("idle", "busy"), "under cover"),
            (row[1], ("bare idle", "bare busy"), "without"),
        ):
            both = by_name[one][way], by_name[other][way]
            most = max(map(max, both)) + BIN_BYTES
            edges = range(0, most + BIN_BYTES, BIN_BYTES * max(1, most // BIN_BYTES // 60))
            axis.hist(both[0], edges, histtype="stepfilled", alpha=0.4, label=f"idle ({len(both[0])} windows)")
            axis.hist(both[1], edges, histtype="step", linewidth=1.6, label="busy")
            distance = total_variation(*both)
            axis.set_title(f"{way}, {title}: total variation {distance:.3f}", fontsize=10)
            axis.set_xlabel("bytes on the client's link in 100 ms")
            axis.legend(fontsize=8)
        row[0].set_ylabel("windows")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=59760.0, metavar="N", help="bytes a second (default: 59760)")
    parser.add_argument("--seconds", type=float, default=64.0, metavar="S", help="of each recording (default: 64)")
    parser.add_argument(
        "--jitter", type=float, default=0.0, metavar="PART", help="of a slot left to chance (default: 0)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the histograms")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        lab.enter_namespace()
        pace = Pace.of(options.rate, options.seconds, options.jitter)
        with tempfile.TemporaryDirectory() as folder, lab.open_lab(delay_ms=0) as at:
            file = Path(folder) / "records"
            with at.recorded(file):
                minutes = measure(at, pace, file)
    except BentoError as why:
        sys.exit(why.message)
    except KeyboardInterrupt:
        sys.exit(130)
    report(minutes, pace, as_json=options.json)
    if options.picture is not None:
        draw(minutes, options.picture)


if __name__ == "__main__":
    main()
