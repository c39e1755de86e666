"""How fast a file is cut into sealed shards and put together again, and in how little memory.

The yardstick, in the same run: the library's coding of the same file, one pass of AES-256-GCM over it and one of
SHA-256, each in pieces as big as ours, and nothing else (reading is not counted). Ours is all that `client shard` does
on the user's machine, from a file to five sealed files, and from three of those, two data shards lost, to the file.
Both take turns.

All of it happens in a process of its own, that may not have more than 64 MiB of private memory above what it has once
everything is imported (RLIMIT_DATA, so the kernel refuses more); its highest resident size is told too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from intervals import Interval, hodges_lehmann

from bento_tor.client import shards
from bento_tor.client.coding import Code
from bento_tor.client.sealing import CHUNK_BYTES
from bento_tor.client.shards import ShardTicket, Spooled
from bento_tor.errors import BentoError

MIB = 1024 * 1024
LIMIT_BYTES = 64 * MIB
BOXES = tuple(f"unix:{number}" for number in range(5))
NEEDED = 3
# Data shards 0 and 1 are lost: most must be computed.
LEFT = (2, 3, 4)
AIM = 0.5


def yardstick(path: Path) -> tuple[float, float]:
    """Seconds of the three, for cutting and for putting together."""
    code = Code(len(BOXES), NEEDED)
    driver = code._driver
    key, nonce = AESGCM(bytes(32)), bytes(12)
    coding, decoding, sealing, opening, hashing = 0.0, 0.0, 0.0, 0.0, 0.0
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while stripe := file.read(code.stripe_bytes):
            begun = time.perf_counter()
            fragments = driver.encode(stripe)
            encoded = time.perf_counter()
            driver.decode([fragments[number] for number in LEFT])
            decoded = time.perf_counter()
            view = memoryview(stripe)
            chunks = [key.encrypt(nonce, view[at : at + CHUNK_BYTES], None) for at in range(0, len(view), CHUNK_BYTES)]
            sealed = time.perf_counter()
            for chunk in chunks:
                key.decrypt(nonce, chunk, None)
            opened = time.perf_counter()
            digest.update(stripe)
            hashed = time.perf_counter()
            coding += encoded - begun
            decoding += decoded - encoded
            sealing += sealed - decoded
            opening += opened - sealed
            hashing += hashed - opened
    return coding + sealing + hashing, decoding + opening + hashing


def cut(path: Path, folder: Path) -> tuple[float, ShardTicket, list[Spooled]]:
    """Seconds of ours."""
    begun = time.perf_counter()
    ticket, spooled = shards.cut(path, ShardTicket(BOXES, NEEDED, path.stat().st_size, os.urandom(32)), folder)
    return time.perf_counter() - begun, ticket, spooled


def join(ticket: ShardTicket, spooled: list[Spooled], folder: Path) -> float:
    """Seconds of ours, from the sealed shards as they came from the boxes."""
    begun = time.perf_counter()
    shards.join({number: spooled[number].path for number in LEFT}, ticket, folder / "joined")
    return time.perf_counter() - begun


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
    told: dict[str, list[float]] = {name: [] for name in ("encode", "decode", "encode_s", "decode_s")}
    with tempfile.TemporaryDirectory(prefix="bento-shard-") as base:
        path = Path(base) / "file"
        with path.open("wb") as file:
            for _ in range(0, size_bytes, MIB):
                file.write(os.urandom(MIB))
        os.truncate(path, size_bytes)
        for number in range(rounds):
            folder = Path(base) / str(number)
            folder.mkdir()
            encode_s, decode_s = yardstick(path)
            cut_s, ticket, spooled = cut(path, folder)
            join_s = join(ticket, spooled, folder)
            if not same(path, folder / "joined"):
                raise BentoError("what came back is not what was cut")
            for name, value in (
                ("encode", encode_s / cut_s), ("decode", decode_s / join_s), ("encode_s", cut_s), ("decode_s", join_s),
            ):  # fmt: skip
                told[name].append(value)
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
    figures = {f"{name}_mb_per_s": options.mb / sorted(told[f"{name}_s"])[options.rounds // 2] for name in ratios}
    figures["peak_mib"] = told["peak_mib"][0]
    if options.json:
        rounded = {name: round(value, 3) for name, value in figures.items()}
        print(json.dumps({"name": "shard", "figures": rounded, "ratios": {n: as_json(r) for n, r in ratios.items()}}))
        return
    for name, ratio in ratios.items():
        word = "reached" if ratio.reaches(AIM) else "MISSED"
        print(f"  {name:8} {figures[f'{name}_mb_per_s']:8.0f} MB/s   {ratio.middle:.2f} of the library, AES-GCM and "
              f"SHA-256 alone ({ratio.low:.2f} to {ratio.high:.2f}; at least {AIM}: {word})")  # fmt: skip
    print(f"  memory   {figures['peak_mib']:8.1f} MiB  at most, resident, above the imported program (limit: 64)")


def as_json(ratio: Interval) -> float:
    """As the other benches tell a ratio."""
    return round(ratio.middle, 3)


if __name__ == "__main__":
    main()
