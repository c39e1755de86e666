"""`bento-tor demo`: the whole idea at work on one machine, with nothing pretended."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.errors import BentoError, SandboxError, TorTimeout

if TYPE_CHECKING:
    from bento_tor.network import Network

# A private box may tell everything, and keeps data for functions, as docs/writing-functions.md has them. An ordinary
# user may set no cgroup limits on many machines: the demo says so and goes on; `serve` alone would refuse.
BOX_POLICY = 'host_stats = "full"\nstore_bytes = 1048576\n'
_BOX_START_S = 60.0
_ONION_S = 90.0
_CONFIRM_S = 90.0


@click.command()
@click.option("--dir", "directory", metavar="DIR", help="Where the network lives; by default a temporary folder.")
@click.option("--keep", is_flag=True, help="Leave everything running, and say what to try next.")
@json_option
def command(directory: str | None, keep: bool, as_json: bool) -> None:
    """Bring up a private Tor network, set a relay up, run a box beside it, and use three functions over Tor.

    Everything is real: tor processes, circuits, an onion service, the sandbox. It ends what it started."""
    from bento_tor.network.interrupts import one_interrupt

    directory = directory or None
    # A short path: a unix socket's has 107 bytes at most.
    place = Path(directory).absolute() if directory else Path(tempfile.mkdtemp(prefix="bento-")) / "net"
    ours = _is_free(place)
    with one_interrupt():
        try:
            told = _Demo(place, as_json=as_json).run()
            if not keep:
                with ui.progress("ending everything"):
                    _clear(place, directory)
        except BaseException:
            # Also where a Ctrl-C came into the ending: nothing interrupts a second time.
            if ours:
                _clear(place, directory)
            raise
        if keep:
            _tell_next(told, place, as_json=as_json)
            return
    if as_json:
        ui.result_json(told)


def _is_free(place: Path) -> bool:
    """Whether what will be in this folder is ours to end and to remove: not where somebody has something already."""
    try:
        return not place.exists() or not any(place.iterdir())
    except OSError:
        return False


def _clear(place: Path, directory: str | None) -> None:
    """End what runs, remove what we made: also when we were stopped before the network knew of the box."""
    from bento_tor.network.life import down

    state = place / "box"
    down(place)
    if state.is_dir():
        shutil.rmtree(state)
        with suppress(OSError):  # somebody put a file of his own beside it
            place.rmdir()
    if directory is None and place.parent.exists():
        place.parent.rmdir()


class _Demo:
    """The steps, and how long each took."""

    def __init__(self, place: Path, *, as_json: bool) -> None:
        self._place = place
        self._as_json = as_json
        self._timings: dict[str, float] = {}
        self._results: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        from bento_tor.network.life import up
        from bento_tor.network.plan import NetworkSettings
        from bento_tor.sandbox import images

        with self._step("image", "looking for the image that functions see"):
            images.build("python", images.default_dir(), ui.say)
        with self._step("network", "bringing up a private Tor network") as progress:
            network = up(NetworkSettings(), self._place, report=progress.update)
        with self._step("relay", "setting a relay up for a box"):
            relay = network.relays[0]
            address = self._set_up_relay(network, str(relay.control))
        with self._step("box", "starting a box beside it"), _ended_on_failure(self._start_box()) as process:
            network.adopt("box", process.pid, directory=self._place / "box")
            self._wait_box(process)
        rtt_s = self._use(address, str(network.client.socks))
        self._show(address, rtt_s)
        return {
            "network": str(self._place),
            "box": address,
            "socks": str(network.client.socks),
            "control": str(network.client.control),
            "timings": {name: round(seconds, 3) for name, seconds in {**self._timings, "rtt": rtt_s}.items()},
            "results": self._results,
        }

    def _set_up_relay(self, network: Network, control: str) -> str:
        setting_up = _bento("setup-relay", "--control", control, "--state", str(self._place / "box"), "--yes", "--json")
        with _ended_on_failure(setting_up) as process:
            # From here on `network down` knows of the box's folder, also if we are killed.
            network.adopt("box", process.pid, directory=self._place / "box")
            try:
                out, _ = process.communicate(timeout=_CONFIRM_S)
            except subprocess.TimeoutExpired as why:
                raise TorTimeout("the relay did not confirm its set-up in time") from why
        return str(_read_answer(out, process)["address"])

    def _start_box(self) -> subprocess.Popen[bytes]:
        state = self._place / "box"
        state.mkdir(exist_ok=True, mode=0o711)
        policy = state / "policy.toml"
        policy.write_text(BOX_POLICY, "utf-8")
        options = ("--state", str(state), "--policy", str(policy), "--rlimits-only")
        with (state / "log").open("ab") as log:
            return _bento("--verbose", "serve", *options, "--json", stderr=log)

    def _wait_box(self, process: subprocess.Popen[bytes]) -> None:
        import select

        if process.stdout is None:
            raise SandboxError("the box has no output")
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(_BOX_START_S * 1000):
            raise SandboxError("the box did not start in time")
        answer = _read_answer(process.stdout.readline(), process)
        if "address" not in answer:
            raise SandboxError("the box did not say where it is")
        if missing := {"memory", "pids"} - set(answer["limits"]):
            ui.warn(f"no cgroup limits for {' and '.join(sorted(missing))} here: functions are limited by rlimits only")

    def _use(self, address: str, socks: str) -> float:
        """Three functions over one onion connection; the circuit's round trip, in seconds."""
        from bento_tor.client import connect, load, make_call
        from bento_tor.controller.endpoints import Endpoint
        from bento_tor.controller.streams import check_reachable

        with self._step("onion", f"reaching {address} through Tor"):
            check_reachable(Endpoint.parse(socks), address, 80, timeout_s=_ONION_S)
        with connect(address, socks=socks, timeout_s=_ONION_S) as box:
            box.policy()
            rtt_s = min(box.ping() for _ in range(3))
            for name, arguments in (("hello", ()), ("add", (5, 12)), ("monitor", ())):
                with self._step(name, f"running {name} there"):
                    session = box.run(load(name), make_call(name, *arguments))
                    text = b"\n".join(session).decode("utf-8", "replace")
                    outcome = session.wait()
                    if not outcome.succeeded:
                        raise BentoError(f"{name} ended with {outcome.word}: {outcome.detail}")
                self._results[name] = text
                if not self._as_json:
                    ui.result(ui.escape(text))
        return rtt_s

    @contextmanager
    def _step(self, name: str, text: str) -> Iterator[ui.Progress]:
        begun = time.monotonic()
        with ui.progress(text) as progress:
            yield progress
        self._timings[name] = time.monotonic() - begun

    def _show(self, address: str, rtt_s: float) -> None:
        if self._as_json:
            return
        ui.result("")
        ui.result(f"box      {address}")
        for name, seconds in self._timings.items():
            ui.result(f"{name:<8} {seconds:7.2f} s")
        ui.result(f"{'circuit':<8} {rtt_s:7.3f} s for a round trip to the box and back")


def _bento(*arguments: str, stderr: Any = None) -> subprocess.Popen[bytes]:
    """Our own command line in a process of its own; a Ctrl-C at the terminal does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-m", "bento_tor.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr if stderr is not None else subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def _ended_on_failure(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """If the block fails, or is interrupted, the process goes."""
    try:
        yield process
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _read_answer(line: bytes, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError as why:
        raise BentoError(f"a part of the demo ended early (status {process.poll()})") from why
    if "error" in answer:
        raise BentoError(str(answer["error"]["message"]), hint=str(answer["error"]["hint"]))
    return answer


def _tell_next(told: dict[str, Any], place: Path, *, as_json: bool) -> None:
    if as_json:
        ui.result_json(told)
        return
    ui.result("")
    ui.result("it goes on running. try:")
    ui.result(f"  export BENTO_TOR_NETWORK={place} BENTO_TOR_BOX={told['box']}")
    ui.result("  bento-tor client run echo")
    ui.result("  bento-tor client upload monitor")
    ui.result("  bento-tor client exec monitor")
    ui.result("  bento-tor client attach monitor")
    ui.result("  bento-tor function new greet        # one of your own: docs/writing-functions.md")
    ui.result(f"  bento-tor network down --dir {place}")
