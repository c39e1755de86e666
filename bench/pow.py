"""What proof of work does for an onion service: a burst of clients, and the effort that its tor asks for.

A private network on this machine, a service that answers one word, allowed one introduction a second. Forty clients
come at once, each by circuits of its own; then again and again, until tor has raised the effort that it suggests (it
reckons every 300 seconds) or the time is over. Then the effort as the metrics and as the descriptor have it, and
whether a client still gets in.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from bento_tor.controller import descriptor, onion, services
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.onion import Defences
from bento_tor.controller.streams import SocksStream
from bento_tor.controller.tor import Tor
from bento_tor.errors import BentoError
from bento_tor.network import Network, NetworkSettings, down, up

BURST = 40
ONE_S = 60.0
METRIC = "tor_hs_pow_suggested_effort"


def answer(listener: socket.socket) -> None:
    """One word to whoever comes."""
    while True:
        try:
            stream = listener.accept()[0]
        except OSError:
            return
        with stream, suppress(OSError):
            stream.sendall(b"here")


def come(socks: Endpoint, address: str) -> float | None:
    """One client, by circuits of its own. The seconds until the word was there; None where it never was."""
    began = time.monotonic()
    stream = SocksStream(socks, user=secrets.token_hex(8), password="x")
    try:
        stream.settimeout(ONE_S)
        stream.connect((address, 80))
        return time.monotonic() - began if stream.recv(4) == b"here" else None
    except OSError:
        return None
    finally:
        stream.close()


def burst(socks: Endpoint, address: str, count: int) -> list[float | None]:
    """So many at once."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: come(socks, address), range(count)))


def effort(port: int) -> float:
    """The metric, as tor's MetricsPort has it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return max((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(METRIC)), default=-1.0)


def in_descriptor(tor: Tor, address: str) -> int | None:
    """The effort that its descriptor suggests."""
    fetched = services.fetch(tor, address, timeout_s=30)
    contents = descriptor.maybe_open(fetched.text, address) if fetched.text else None
    return contents.pow_effort if contents is not None else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(network: Network, folder: Path, minutes: float) -> dict[str, Any]:
    """All of it, on that network."""
    host, guest = network.clients
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "here"))
    listener.listen(256)
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
    port = free_port()
    with network.connect(host) as tor, network.connect(guest) as other:
        tor.set_conf([("MetricsPort", f"127.0.0.1:{port}"), ("MetricsPortPolicy", "accept 127.0.0.1")])
        address = onion.publish(
            tor, onion.mint_seed(), 80, f"unix:{folder / 'here'}", timeout_s=120, defences=Defences(pow_rate=1)
        )
        while come(guest.socks, address) is None:
            time.sleep(1)
        first = in_descriptor(other, address)
        rows, began = [burst(guest.socks, address, BURST)], time.monotonic()
        say(f"burst 1: {words(rows[0])}; effort {effort(port):g}")
        while effort(port) <= 0 and time.monotonic() - began < 60 * minutes:
            rows.append(burst(guest.socks, address, BURST))
            say(f"burst {len(rows)}: {words(rows[-1])}; effort {effort(port):g}")
        raised, after_s = effort(port), time.monotonic() - began
        last = in_descriptor(other, address)
        late = [come(guest.socks, address) for _ in range(3)]
        listener.close()
    return {
        "burst": BURST,
        "first_burst": [None if one is None else round(one, 2) for one in rows[0]],
        "bursts": len(rows),
        "answered": sum(one is not None for row in rows for one in row),
        "asked": BURST * len(rows),
        "effort_in_first_descriptor": first,
        "effort_metric": raised,
        "after_s": round(after_s),
        "effort_in_last_descriptor": last,
        "afterwards": [None if one is None else round(one, 2) for one in late],
    }


def words(row: list[float | None]) -> str:
    times = [one for one in row if one is not None]
    middle = f", median {statistics.median(times):.1f} s, longest {max(times):.1f} s" if times else ""
    return f"{len(times)} of {len(row)} answered{middle}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="press at most so long")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bento-pow-") as folder:
        network = up(NetworkSettings(clients=2), Path(folder) / "n")
        try:
            found = measure(network, Path(folder), options.minutes)
        except BentoError as error:
            say(f"error: {error.message}")
            return error.exit_code
        finally:
            down(Path(folder) / "n")
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:<28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
