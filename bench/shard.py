"""How fast a file is cut into sealed shards and put together again, and in how little memory.

The yardstick, in the same run: the library's coding of the same stripes, one pass of AES-256-GCM over the file and one
of SHA-256. Against it, stripe by stripe in turn, all that we compute: five sealed shards of which three are needed, and
the file from three of them, with two data shards lost. Also, as figures, the whole of it from file to files.

All of it happens in a process of its own, which may not have more than 64 MiB of private memory above what it has once
everything is imported (RLIMIT_DATA, so the kernel refuses more); its highest resident size above that is told too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from intervals import Interval, hodges_lehmann

from bento_tor.client import spooling
from bento_tor.client.sealing import CHUNK_BYTES
from bento_tor.client.shards import Cutter, Joiner, ShardTicket
from bento_tor.errors import BentoError

MIB = 1024 * 1024
LIMIT_BYTES = 64 * MIB
BOXES = tuple(f"unix:{number}" for number in range(5))
NEEDED = 3
# Data shards 0 and 1 are lost: most must be computed.
LEFT = (2, 3, 4)
AIM = 0.5


@dataclass
class Seconds:
    """Of the library, AES-GCM and SHA-256 alone, and of ours, for cutting and for putting together."""

    base_cut: float = 0.0
    base_join: float = 0.0
    cut: float = 0.0
    join: float = 0.0


def compute(path: Path) -> Seconds:
    """Stripe by stripe in turn, the file read once: both meet the same machine, and no disk."""
    ticket = ShardTicket(BOXES, NEEDED, path.stat().st_size, os.urandom(32))
    code, key, nonce = ticket.code, AESGCM(bytes(32)), bytes(12)
    hashes = [hashlib.sha256() for _ in range(4)]
    cutter, joiner = Cutter(ticket, hashes[0]), Joiner(ticket, LEFT, hashes[1])
    took, clock = Seconds(), time.perf_counter
    with path.open("rb", buffering=0) as file:
        for at, length in enumerate(stripes := code.stripes(ticket.file_bytes)):
            stripe, last = file.read(length), at == len(stripes) - 1
            view = memoryview(stripe)
            begun = clock()
            fragments = code._driver.encode(stripe)
            chunks = [key.encrypt(nonce, view[at : at + CHUNK_BYTES], None) for at in range(0, length, CHUNK_BYTES)]
            hashes[2].update(stripe)
            base_cut = clock()
            cut = cutter.cut(stripe, last=last)
            ours_cut = clock()
            sealed = {number: b"".join(cut[number]) for number in LEFT}
            between = clock()
            code._driver.decode([fragments[number] for number in LEFT])
            for chunk in chunks:
                key.decrypt(nonce, chunk, None)
            hashes[3].update(stripe)
            base_join = clock()
            joined = joiner.join(sealed, length, last=last)
            ours_join = clock()
            if joined != stripe:
                raise BentoError("what came back is not what was cut")
            took.base_cut += base_cut - begun
            took.cut += ours_cut - base_cut
            took.base_join += base_join - between
            took.join += ours_join - base_join
    return took


def with_files(path: Path, folder: Path) -> tuple[float, float]:
    """Seconds of all that happens on the user's machine, with every file read and written."""
    begun = time.perf_counter()
    ticket, spooled = spooling.cut(path, ShardTicket(BOXES, NEEDED, path.stat().st_size, os.urandom(32)), folder)
    cut = time.perf_counter()
    spooling.join({number: spooled[number].path for number in LEFT}, ticket, folder / "joined")
    joined = time.perf_counter()
    if not same(path, folder / "joined"):
        raise BentoError("what came back is not what was cut")
    return cut - begun, joined - cut


def kib(name: str) -> int:
    """A figure of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise BentoError(f"the kernel tells no {name}")


def measure(size_bytes: int, rounds: int) -> dict[str, list[float]]:
    """In the child: everything, in turns."""
    before_data, before_rss = kib("VmData") * 1024, kib("VmRSS") * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (before_data + LIMIT_BYTES,) * 2)
    told: dict[str, list[float]] = {name: [] for name in ("encode", "decode", "encode_files_s", "decode_files_s")}
    with tempfile.TemporaryDirectory(prefix="bento-shard-") as base:
        path = Path(base) / "file"
        with path.open("wb") as file:
            for _ in range(0, size_bytes, MIB):
                file.write(os.urandom(MIB))
        os.truncate(path, size_bytes)
        for number in range(rounds):
            took = compute(path)
            told["encode"].append(took.base_cut / took.cut)
            told["decode"].append(took.base_join / took.join)
            folder = Path(base) / str(number)
            folder.mkdir()
            cut_s, join_s = with_files(path, folder)
            told["encode_files_s"].append(cut_s)
            told["decode_files_s"].append(join_s)
            for left in folder.iterdir():
                left.unlink()
    told["peak_mib"] = [(kib("VmHWM") * 1024 - before_rss) / MIB]
    return told


def same(one: Path, other: Path) -> bool:
    """Whether two files are."""
    with one.open("rb") as a, other.open("rb") as b:
        while (data := a.read(MIB)) == b.read(MIB):
            if not data:
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=100, metavar="N", help="length of the file (default: 100)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="how often (default: 8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.mb * 10**6, options.rounds)))
        return
    done = subprocess.run(
        [sys.executable, __file__, "--child", "--mb", str(options.mb), "--rounds", str(options.rounds)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    told = json.loads(done.stdout)
    ratios = {name: hodges_lehmann(told[name]) for name in ("encode", "decode")}
    figures = {f"{name}_files_mb_per_s": options.mb / statistics.median(told[f"{name}_files_s"]) for name in ratios}
    figures["peak_mib"] = told["peak_mib"][0]
    if options.json:
        rounded = {name: round(value, 3) for name, value in figures.items()}
        print(json.dumps({"name": "shard", "figures": rounded, "ratios": {n: as_json(r) for n, r in ratios.items()}}))
        return
    for name, ratio in ratios.items():
        word = "reached" if ratio.reaches(AIM) else "MISSED"
        print(f"  {name:8} {ratio.middle:.2f} of the library, AES-GCM and SHA-256 alone ({ratio.low:.2f} to "
              f"{ratio.high:.2f}; at least {AIM}: {word});"
              f" {figures[f'{name}_files_mb_per_s']:.0f} MB/s from file to files")  # fmt: skip
    print(f"  memory   {figures['peak_mib']:.1f} MiB at most above the imported program (limit: 64)")


def as_json(ratio: Interval) -> float:
    """As the other benches tell a ratio."""
    return round(ratio.middle, 3)


if __name__ == "__main__":
    main()
