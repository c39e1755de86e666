"""What the protocol leaves of a circuit: uploads and downloads of many megabytes, against a raw stream of that circuit.

Framing is counted exactly: every byte between the client and the box's door, acknowledgements included, against the
bytes of the messages. Speed is compared in pairs, raw stream and protocol in turn, the order changing from pair to
pair, on one circuit (single circuits differ by 30 %). A pair gives the raw stream's time over the protocol's: 1 is as
fast as raw. An upload is input to a running function, a download its output; streams are open before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import lab
from beside import COMMAND, COUNTS, drain, exactly
from intervals import Interval, hodges_lehmann
from lab import BOX, COUNTING, RAW, Lab, Way

from bento_tor.client import Session, make_call, parse
from bento_tor.errors import BentoError

MB = 1000 * 1000
AIM = 0.97
_PIECE_BYTES = 64 * 1024
# Waits for a word, sends or takes so many messages of a megabyte, and says that it is done.
SOURCE = parse(
    "goodput",
    """
def down(count):
    data = bytes(10**6)
    api.send("ready")
    while api.recv() == b"go":
        for _ in range(count):
            api.send(data)

def up(count):
    api.send("ready")
    while True:
        length = sum(len(api.recv()) for _ in range(count))
        api.send(str(length))
""",
)


@dataclass
class Pairs:
    """Seconds of one direction, pair by pair."""

    raw_s: list[float] = field(default_factory=list)
    protocol_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Interval:
        """The raw stream's time over the protocol's."""
        return hodges_lehmann([raw / own for raw, own in zip(self.raw_s, self.protocol_s, strict=True)])


@dataclass(frozen=True)
class Framing:
    """Bytes through the box's door for so many bytes of messages one way."""

    payload: int
    with_it: int
    against_it: int

    @property
    def overhead_percent(self) -> float:
        """All that is not payload, both ways, of the payload."""
        return 100 * (self.with_it + self.against_it - self.payload) / self.payload


def raw_down(at: Lab, way: Way, identity: str, megabytes: int) -> float:
    """Seconds of a download without any protocol."""
    with at.stream(way, identity, RAW) as sock:
        begun = time.perf_counter()
        sock.sendall(COMMAND.pack(b"s", megabytes * MB))
        drain(sock, megabytes * MB)
        return time.perf_counter() - begun


def raw_up(at: Lab, way: Way, identity: str, megabytes: int) -> float:
    """Seconds of an upload without any protocol, to the word that all has come."""
    piece = memoryview(bytes(_PIECE_BYTES))
    length = megabytes * MB
    with at.stream(way, identity, RAW) as sock:
        begun = time.perf_counter()
        sock.sendall(COMMAND.pack(b"k", length))
        for start in range(0, length, _PIECE_BYTES):
            sock.sendall(piece[: length - start])
        exactly(sock, 1)
        return time.perf_counter() - begun


def session_down(session: Session, megabytes: int) -> float:
    """Seconds of a download by the protocol."""
    begun = time.perf_counter()
    session.send(b"go")
    left = megabytes * MB
    while left:
        piece = session.maybe_piece(timeout_s=lab.TIMEOUT_S)
        if piece is None:
            raise BentoError(f"the function ended: {session.wait()}")
        left -= len(piece.data)
    return time.perf_counter() - begun


def session_up(session: Session, megabytes: int) -> float:
    """Seconds of an upload by the protocol, to the function's word that all has come."""
    message = bytes(MB)
    begun = time.perf_counter()
    for _ in range(megabytes):
        session.send(message)
    told = session.maybe_receive(timeout_s=lab.TIMEOUT_S)
    took = time.perf_counter() - begun
    if told != str(megabytes * MB).encode():
        raise BentoError(f"the function took {told!r} bytes")
    return took


def measure(at: Lab, way: Way, name: str, pairs: int, megabytes: int) -> Pairs:
    """Pairs of one direction, after one of each that does not count."""
    raw, own = (raw_down, session_down) if name == "down" else (raw_up, session_up)
    found = Pairs()
    with _Running(at, way, BOX, name, megabytes) as (session, identity):
        kinds: list[tuple[list[float], Callable[[], float]]] = [
            (found.raw_s, lambda: raw(at, way, identity, megabytes)),
            (found.protocol_s, lambda: own(session, megabytes)),
        ]
        for _, once in kinds:
            once()
        circuit = at.one_circuit(way)
        for number in range(pairs):
            for kept, once in kinds if number % 2 else reversed(kinds):
                kept.append(once())
            if at.one_circuit(way) != circuit:
                raise BentoError("the circuit broke between two measurements")
            lab.say(f"{name}load: {number + 1} of {pairs}")
    return found


def count(at: Lab, way: Way, name: str, megabytes: int) -> Framing:
    """One transfer through the counting door."""
    own = session_down if name == "down" else session_up
    with _Running(at, way, COUNTING, name, megabytes) as (session, _):
        up, down = counts(at, way)
        own(session, megabytes)
        up_after, down_after = counts(at, way)
    passed = up_after - up, down_after - down
    with_it, against_it = passed if name == "up" else passed[::-1]
    return Framing(megabytes * MB, with_it, against_it)


def counts(at: Lab, way: Way) -> tuple[int, int]:
    """Bytes through the counting door so far, up and down, once nothing is under way any more."""
    before = None
    while True:
        with at.raw(way, "counts", b"c") as sock:
            found: tuple[int, int] = COUNTS.unpack(exactly(sock, COUNTS.size))
        if found == before:
            return found
        before = found
        time.sleep(0.5)  # the last acknowledgements are on their way


class _Running:
    """A running function of SOURCE, warm; with the identity of its circuit."""

    def __init__(self, at: Lab, way: Way, port: int, name: str, megabytes: int) -> None:
        self._identity = f"goodput {name} {port}"
        self._box = at.box(way, self._identity, port)
        self._name = name
        self._count = megabytes

    def __enter__(self) -> tuple[Session, str]:
        self._box.__enter__()
        self._running = self._box.run(SOURCE, make_call(self._name, self._count))
        self._running.maybe_receive(timeout_s=lab.TIMEOUT_S)
        return self._running, self._identity

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._running.end()
        self._box.__exit__(*exc)


def report(pairs: dict[str, Pairs], framing: dict[str, Framing], megabytes: int, *, as_json: bool) -> None:
    """Print it."""
    figures = {f"framing_{name}_percent": round(found.overhead_percent, 4) for name, found in framing.items()}
    for name, found in pairs.items():
        figures[f"{name}_mb_per_s"] = round(megabytes / statistics.median(found.protocol_s), 2)
        figures[f"raw_{name}_mb_per_s"] = round(megabytes / statistics.median(found.raw_s), 2)
        figures[f"{name}_over_raw_low"] = round(found.ratio.low, 3)
        figures[f"{name}_over_raw_high"] = round(found.ratio.high, 3)
    ratios = {f"{name}_over_raw": round(found.ratio.middle, 3) for name, found in pairs.items()}
    if as_json:
        print(json.dumps({"name": "goodput", "figures": figures, "ratios": ratios}))
        return
    count_ = len(pairs["up"].raw_s)
    print(f"{count_} pairs of {megabytes} MB each way on one onion circuit; middle (95 % interval, Hodges-Lehmann)")
    for name, found in pairs.items():
        speeds = f"{figures[f'{name}_mb_per_s']:.1f} MB/s, raw {figures[f'raw_{name}_mb_per_s']:.1f} MB/s"
        ratio = f"{found.ratio.middle:.3f} ({found.ratio.low:.3f} - {found.ratio.high:.3f})"
        verdict = "reached" if found.ratio.reaches(AIM) else "NOT reached"
        print(f"  {name + 'load':9} {speeds}; over raw {ratio}; {AIM} is {verdict}")
    for name, each in framing.items():
        print(
            f"  framing {name:5} {each.payload} bytes of messages: {each.with_it} the same way, {each.against_it} the "
            f"other: {each.overhead_percent:.4f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, metavar="N", help="pairs each way (default: 12)")
    parser.add_argument("--mb", type=int, default=50, metavar="N", help="megabytes of a transfer (default: 50)")
    parser.add_argument("--delay-ms", type=float, default=0.0, metavar="MS", help="of a link, each way (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        lab.enter_namespace()
        with lab.open_lab(delay_ms=options.delay_ms) as at:
            way = at.ways["onion"]
            framing = {name: count(at, way, name, options.mb) for name in ("up", "down")}
            pairs = {name: measure(at, way, name, options.pairs, options.mb) for name in ("up", "down")}
    except BentoError as why:
        sys.exit(why.message)
    except KeyboardInterrupt:
        sys.exit(130)
    report(pairs, framing, options.mb, as_json=options.json)


if __name__ == "__main__":
    main()
