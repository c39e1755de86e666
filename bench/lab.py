"""Where Tor is measured: a network namespace with no way out, a private Tor network in it, and a box.

Loopback falsifies round trips in two ways, and both are put right here: the kernel delays acknowledgements (a small
write after another then waits for 40 ms), so they are quick; and a link takes no time, so links get a delay. The box
is reached in two ways: as an onion service, and by ordinary exit streams to a documentation address.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import links
from beside import COMMAND, exactly
from steps import Step

from bento_tor.client import Box, Retries, connect
from bento_tor.client.route import BoxAddress, TorTransport
from bento_tor.client.transport import Transport
from bento_tor.controller import onion
from bento_tor.controller.relay import VIRTUAL_ADDRESS
from bento_tor.controller.streams import SocksStream, check_reachable
from bento_tor.controller.tor import Events, Tor
from bento_tor.errors import BentoError
from bento_tor.network import Network, NetworkSettings, down, up
from bento_tor.network.plan import MIN_INTERVAL_S
from bento_tor.protocol import messages as m
from bento_tor.sandbox import images

BOX, RAW, COUNTING = 9000, 9001, 9002
RECORDER = 9003
TIMEOUT_S = 120.0
_SELDOM_S = 120
_IN_NAMESPACE = "BENTO_BENCH_NAMESPACE"
_POLICY = """
listen = "{listen}"
ready = 4
[policy.limits]
wall_s = 3600
cpu_s = 3600
[policy]
output_bytes = 1000000000000
"""


Wrap = Callable[[Transport], Transport]


@dataclass(frozen=True)
class Way:
    """How the box is reached: `onion` or `exit`. `host` is what tor is asked for; ports are the same on both."""

    name: str
    host: str


@dataclass(frozen=True)
class Web:
    """A web server for a box and for exits: a program of this folder, and the addresses that it answers for."""

    script: str
    arguments: tuple[str, ...]
    addresses: str


class Lab:
    """A running laboratory. Made by `open_lab`."""

    def __init__(self, network: Network, tor: Tor, ways: tuple[Way, ...], delay: subprocess.Popen[str] | None) -> None:
        self.ways = {way.name: way for way in ways}
        self.policy_digest = b""
        self._network = network
        self._tor = tor
        self._maybe_links = delay

    def box(
        self, way: Way, identity: str, port: int = BOX, wrap: Callable[[Transport], Transport] | None = None
    ) -> Box:
        """The box by that way, on the circuit of `identity`; to be entered. `wrap`: what stands between."""
        # A documentation address takes the place of the onion service's, for the transport alone.
        place = BoxAddress("onion", way.host, port)
        word = f"{way.name} {identity}"
        transport = TorTransport(place, self._network.client.socks, isolation=word, timeout_s=TIMEOUT_S)
        return connect(
            f"{self.ways['onion'].host}:{port}",
            transport=wrap(transport) if wrap is not None else transport,
            timeout_s=TIMEOUT_S,
            policy_digest=self.policy_digest,
            retries=Retries(most=0),
        )

    def stream(self, way: Way, identity: str, port: int, maybe_host: str | None = None) -> socket.socket:
        """A stream opened step by step, on the circuit that `box` has for the same identity (`one_circuit` shows).

        `maybe_host`: to there, instead of the way's end."""
        sock = SocksStream(self._network.client.socks, user=_user(way, identity), password="bento")
        sock.settimeout(TIMEOUT_S)
        sock.connect((maybe_host or way.host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def raw(self, way: Way, identity: str, letter: bytes, length: int = 0) -> socket.socket:
        """A raw stream beside the box, with its command said (see `beside`)."""
        sock = self.stream(way, identity, RAW)
        sock.sendall(COMMAND.pack(letter, length))
        return sock

    def circuits(self, way: Way) -> set[str]:
        """The circuits on which streams to that way's host are now."""
        lines = (line.split() for line in self._tor.get_info("stream-status").splitlines())
        return {words[2] for words in lines if len(words) > 3 and words[3].rpartition(":")[0].startswith(way.host)}

    def one_circuit(self, way: Way) -> str:
        """The one circuit of all open streams to that way. Raises BentoError where there are several, or none."""
        found = self.circuits(way)
        if len(found) != 1:
            raise BentoError(f"the streams of one identity are on {len(found)} circuits: nothing can be compared")
        return found.pop()

    @contextmanager
    def recorded(self, file: Path) -> Iterator[None]:
        """What an observer of the client's link sees goes into `file`, a line for each TLS record (see `recorder`)."""
        with _child("recorder.py", str(RECORDER), str(file)):
            # Connections that stand already would stay as they are.
            self._tor.set_conf([("Socks5Proxy", f"127.0.0.1:{RECORDER}"), ("DisableNetwork", "1")])
            self._tor.set_conf([("DisableNetwork", "0")])
            check_reachable(self._network.client.socks, self.ways["onion"].host, BOX, timeout_s=TIMEOUT_S)
            yield

    def be_quiet(self) -> None:
        """From now on the client says nothing of its own: no padding of its link, no circuits that nobody asked for."""
        self._tor.set_conf([("ConnectionPadding", "0"), ("__DisablePredictedCircuits", "1")])

    def circuit_bytes(self) -> AbstractContextManager[Events]:
        """What tor says of the bytes of each circuit, once a second: CIRC_BW."""
        return self._tor.events("CIRC_BW")

    def end_circuits(self, way: Way, identity: str) -> None:
        """The circuits of that identity are not needed any more."""
        user = _user(way, identity)
        for line in self._tor.get_info("circuit-status").splitlines():
            if f'SOCKS_USERNAME="{user}"' in line:
                self._tor.msg(f"CLOSECIRCUIT {line.split()[0]}")  # it may have gone by itself

    def set_delay(self, milliseconds: float) -> None:
        """What a byte needs from one end of a link to the other."""
        if self._maybe_links is not None:
            _order(self._maybe_links, f"{milliseconds}\n")


def enter_namespace() -> None:
    """Go on in a network namespace of this program's own. Does not return outside of it; ends the program with a
    sentence where it may not make one. Raises BentoError."""
    if os.environ.get(_IN_NAMESPACE) == str(os.getpid()):
        return
    if os.geteuid() != 0:
        sys.exit("this bench makes a network namespace: run it as root")
    images.build("python", images.default_dir(), say)  # it may need the outer network
    os.environ[_IN_NAMESPACE] = str(os.getpid())
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])


@contextmanager
def open_lab(*, delay_ms: float, relays: int = 5, maybe_web: Web | None = None) -> Iterator[Lab]:
    """Bring everything up in the present namespace; nothing is left afterwards. Raises BentoError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # everything below is put away
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="bento-lab-"))
        stack.callback(shutil.rmtree, base)
        _prepare_loopback()
        maybe_links = stack.enter_context(_child("links.py")) if delay_ms else None
        if maybe_links is not None:
            links.redirect(["10000-32767"])  # where a network's ports come from (bento_tor/network/ports.py)
        stack.callback(down, base / "net")
        # With a web, pages are what is looked at, and not a client that asks for a consensus every ten seconds.
        every_s = MIN_INTERVAL_S if maybe_web is None else _SELDOM_S
        settings = NetworkSettings(relays=relays, clients=2, voting_interval_s=every_s)
        patience_s = TIMEOUT_S + every_s  # the first consensus may be incomplete
        network = up(settings, base / "net", timeout_s=patience_s, owner_pid=os.getpid(), report=say)
        if maybe_links is not None:
            links.redirect([node.or_port for node in network.nodes if node.or_port])
        tor = stack.enter_context(network.connect(network.client))
        _one_path_each(network, tor)
        policy = _POLICY
        if maybe_web is not None:
            stack.enter_context(_web(maybe_web))
            policy = f'relay = "{network.exits[0].control}"\n{_POLICY}egress = ["exit"]\n'
        stack.enter_context(_box(base, policy))
        stack.enter_context(_child("beside.py", *(f"{VIRTUAL_ADDRESS}:{port}" for port in (RAW, COUNTING, BOX))))
        service = stack.enter_context(network.connect(network.clients[1]))
        ways = Way("onion", _publish(service)), Way("exit", VIRTUAL_ADDRESS)
        lab = Lab(network, tor, ways, maybe_links)
        for way in ways:
            check_reachable(network.client.socks, way.host, BOX, timeout_s=TIMEOUT_S)
        with lab.stream(ways[1], "policy", BOX) as sock:
            lab.policy_digest = Step(sock).ask(m.Welcome, m.Hello(m.VERSION, None)).policy
        lab.set_delay(delay_ms)
        yield lab


def _user(way: Way, identity: str) -> str:
    """What isolates the identity's streams, as client/route.py has it."""
    return hashlib.sha256(f"{way.name} {identity}".encode()).hexdigest()[:32]


def say(text: str) -> None:
    """Progress, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _one_path_each(network: Network, tor: Tor) -> None:
    """Exit streams on one path each, not on a linked pair of which either half may carry a byte; the pairs that the
    client has already go."""
    for node in network.exits:
        with network.connect(node) as relay:
            relay.set_conf([("ConfluxEnabled", "0")])
    tor.set_conf([("ConfluxEnabled", "0")])
    for line in tor.get_info("circuit-status").splitlines():
        if "PURPOSE=CONFLUX" in line:
            tor.msg(f"CLOSECIRCUIT {line.split()[0]}")  # it may have gone by itself


def _prepare_loopback() -> None:
    quick = "proto kernel scope host src 127.0.0.1 quickack 1"
    for command in (
        "ip link set lo up",
        f"ip addr add {VIRTUAL_ADDRESS}/32 dev lo",
        f"ip route replace table local local 127.0.0.0/8 dev lo {quick}",
        f"ip route replace table local local 127.0.0.1 dev lo {quick}",
        f"ip route replace table local local {VIRTUAL_ADDRESS} dev lo proto kernel scope host quickack 1",
    ):
        subprocess.run(command.split(), check=True)


def _publish(service: Tor) -> str:
    """The box's onion service, with the streams beside it; up as long as the control connection."""
    ports = " ".join(f"Port={port},{VIRTUAL_ADDRESS}:{port}" for port in (BOX, RAW, COUNTING))
    told = service.ask(f"ADD_ONION NEW:ED25519-V3 Flags=DiscardPK {ports}").lines
    address = told[0].removeprefix("ServiceID=") + ".onion"
    onion.wait_uploaded(service, address, timeout_s=TIMEOUT_S)
    return address


@contextmanager
def _web(web: Web) -> Iterator[None]:
    """Its program in a namespace of its own, at the other end of a cable; every address of the web is there."""
    with _child(web.script, *web.arguments, apart=True) as far:
        inside = f"nsenter -t {far.pid} -n"
        quick = "proto kernel scope host quickack 1"
        for command in (
            f"ip link add web type veth peer name near netns {far.pid}",
            "ip addr add 10.99.0.1/24 dev web",
            "ip link set web up",
            f"{inside} ip link set lo up",
            f"{inside} ip addr add 10.99.0.2/24 dev near",
            f"{inside} ip link set near up",
            f"{inside} ip route add local {web.addresses} dev lo {quick}",
            f"{inside} ip route replace 10.99.0.0/24 dev near src 10.99.0.2 quickack 1",
            f"ip route add {web.addresses} via 10.99.0.2 dev web quickack 1",
        ):
            subprocess.run(command.split(), check=True)
        yield


@contextmanager
def _box(base: Path, text: str) -> Iterator[None]:
    config, log = base / "box.toml", base / "box.log"
    config.write_text(text.format(listen=f"{VIRTUAL_ADDRESS}:{BOX}"))
    argv = [sys.executable, "-m", "bento_tor.cli", "serve", "--json"]
    argv += ["--state", str(base / "box"), "--config", str(config)]
    with log.open("w") as errors:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if "socket" not in (json.loads(line) if line else {}):
            process.wait(timeout=30)  # it has its last words in its log then
            raise BentoError(f"no box: {log.read_text().strip()}")
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def _child(script: str, *arguments: str, apart: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A program of this folder, ready; it ends when its standard input does. `apart`: in a network of its own."""
    argv = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    argv = ["unshare", "--net", *argv] if apart else argv
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _order(process, "")
        yield process
    finally:
        process.terminate()
        process.wait(timeout=10)


def _order(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is None or process.stdout is None:
        raise BentoError("a child without pipes")
    process.stdin.write(line)
    process.stdin.flush()
    if process.stdout.readline() != "ready\n":
        raise BentoError(f"{process.args!r} did not start")


def echo(sock: socket.socket) -> float:
    """Seconds of a small message there and back, on an echoing stream."""
    begun = time.perf_counter()
    sock.sendall(b"echo")
    exactly(sock, 4)
    return time.perf_counter() - begun
