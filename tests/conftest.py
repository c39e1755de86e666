"""What tests share: one real private Tor network per run, a lone tor for what needs no network, boxes, the image, a
copy of everything for an ordinary user."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hypothesis
import psutil
import pytest
from packaging.requirements import Requirement

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor, launch
from bento_tor.network import Network, NetworkSettings, down, up
from bento_tor.sandbox import images

if TYPE_CHECKING:
    from bento_tor.client import Box

HERE = Path(__file__).parent
ROOT = HERE.parent
# A shell starts what it puts into the background with Ctrl-C ignored, nohup with hang-ups ignored; children inherit
# that, and ours shall not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Nothing in the tests asserts a time; on a busy machine any example may take one.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# A run starts commands and boxes by the thousand: none shall compile all of bento-tor for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets; gone after the test."""
    with tempfile.TemporaryDirectory(prefix="bento-t-") as path:
        yield Path(path)


# Stands before tor-gencert in PATH. Every certificate and signing key is made anew; the identity key above them, two
# seconds of search for primes, is made once for each authority's name. It ends with who asked for it.
_GENCERT = """#!/bin/sh
# --create-identity-key -m MONTHS -a ADDRESS --passphrase-fd 0 -i IDENTITY ...
set -e
here=$(dirname "$0") name=${9%/keys/*} new=$(dirname "$0")/$$
kept="$here/identity-${name##*/}"
if [ ! -e "$kept" ]; then
    mkdir "$new"
    echo passphrase | setpriv --pdeathsig KILL @REAL@ --create-identity-key -m 1 -a "$5" --passphrase-fd 0 \\
        -i "$new/identity" -s "$new/signing" -c "$new/certificate"
    mv "$new/identity" "$kept"
fi
cp -p "$kept" "$9"
shift
exec @REAL@ "$@" <<END
passphrase
END
"""


@pytest.fixture(scope="session", autouse=True)
def identity_keys() -> Iterator[None]:
    """The networks of a run, which never hear of each other, share their authorities' identity keys."""
    path = os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="bento-keys-") as folder:
        if (real := shutil.which("tor-gencert")) is not None:
            program = Path(folder) / "tor-gencert"
            program.write_text(_GENCERT.replace("@REAL@", real))
            program.chmod(0o755)
            os.environ["PATH"] = f"{folder}:{path}"
        yield
        os.environ["PATH"] = path


@contextmanager
def _network(settings: NetworkSettings) -> Iterator[Network]:
    base = Path(tempfile.mkdtemp(prefix="bento-net-"))
    try:
        yield up(settings, base / "network", owner_pid=os.getpid())
    finally:
        down(base / "network")
        shutil.rmtree(base)


@pytest.fixture(scope="session")
def tor_network() -> Iterator[Network]:
    """A real network of the default size, shared by all tests of the run: leave it as you found it."""
    with _network(NetworkSettings()) as network:
        yield network


@pytest.fixture
def own_network() -> Iterator[Network]:
    """One with two clients for a test that leaves marks. A tor that was killed is one; so is a relay that came and
    went: authorities list it for 45 minutes more, and with so few relays one first connection in five to an onion
    service then hangs."""
    with _network(NetworkSettings(clients=2)) as network:
        yield network


@pytest.fixture
def start_lone_tor(short_path: Path) -> Iterator[Callable[..., LaunchedTor]]:
    """Start a tor that talks to nobody, with a control socket, a cookie, and the given torrc lines. One per
    test."""
    started: list[LaunchedTor] = []

    def start(*lines: str) -> LaunchedTor:
        control = Endpoint.unix(short_path / "control")
        options = [f"DataDirectory {short_path / 'data'}", f"ControlSocket {control.path}", "CookieAuthentication 1"]
        torrc, defaults = short_path / "torrc", short_path / "defaults"
        torrc.write_text("\n".join([*options, "DisableNetwork 1", "SocksPort 0", *lines, ""]))
        defaults.touch()
        started.append(launch("lone", torrc, control=control, log=short_path / "log", defaults=defaults))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def lone_tor(start_lone_tor: Callable[..., LaunchedTor]) -> LaunchedTor:
    """Such a tor, with nothing special."""
    return start_lone_tor()


# --- small things -----------------------------------------------------------------------------------------------


def _load(path: Path) -> ModuleType:
    """A module beside the tests, which no package holds."""
    spec = importlib.util.spec_from_file_location(f"tests_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load() -> Callable[[Path], ModuleType]:
    """Load a module beside the tests."""
    return _load


@pytest.fixture(scope="session")
def image() -> images.Image:
    """The image `python`."""
    return images.build("python", images.default_dir(), lambda text: None)


@pytest.fixture(scope="session")
def browser_image() -> images.Image:
    """The image `browser`. Without Debian's Chromium its tests fail, and say what to install."""
    return images.build("browser", images.default_dir(), lambda text: None)


@pytest.fixture
def serve_on_socket(short_path: Path) -> Iterator[Callable[[Callable[[socket.socket], object]], Path]]:
    """Serve a unix socket in a thread: each connection is handed over, then closed."""
    with _serving(short_path) as serve:
        yield serve


@contextmanager
def _serving(folder: Path) -> Iterator[Callable[[Callable[[socket.socket], object]], Path]]:
    served: list[tuple[socket.socket, threading.Thread]] = []

    def accept(server: socket.socket, answer: Callable[[socket.socket], object]) -> None:
        while True:
            try:
                stream = server.accept()[0]
            except OSError:
                return
            with stream, suppress(OSError):  # who only looked whether we are there has hung up
                answer(stream)

    def serve(answer: Callable[[socket.socket], object]) -> Path:
        path = folder / f"served-{len(served)}"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        served.append((server, threading.Thread(target=accept, args=(server, answer))))
        served[-1][1].start()
        return path

    yield serve
    for server, thread in served:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


@pytest.fixture
def tap(short_path: Path) -> Iterator[Callable[..., Any]]:
    """Listen in between a client and a box's socket, or tor's SOCKS port: give the target, get a `Tap`."""
    module, made = _load(HERE / "tap.py"), []

    def listen(target: Path | tuple[str, int]) -> Any:
        path = short_path / f"tap-{len(made)}" if isinstance(target, Path) else None
        made.append(module.Tap(target, path, socks=path is None))
        return made[-1]

    yield listen
    for each in made:
        each.close()


# --- an ordinary user -------------------------------------------------------------------------------------------

ORDINARY_UID = 54_321
_PLAIN = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
)


def _required() -> Iterator[str]:
    """Every distribution that setup.cfg asks for, and what those ask for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    todo = config["options"]["install_requires"].strip().splitlines()
    done: set[str] = set()
    while todo:
        wanted = Requirement(todo.pop())
        if wanted.name in done or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        done.add(wanted.name)
        yield wanted.name
        todo += importlib.metadata.requires(wanted.name) or []


@pytest.fixture(scope="session")
def required() -> list[str]:
    """The names of all distributions that bento-tor needs."""
    return list(_required())


class OrdinaryUser:
    """Runs modules as an ordinary user, by the system's Python, from a copy: the repository may be in a private home.

    As root that is a user id of its own; else it is who runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, *files: Path) -> None:
        """Modules that travel along."""
        for file in files:
            shutil.copy(file, self.folder)
            (self.folder / file.name).chmod(0o644)

    def run(self, module: str, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """`python -m module`, with nothing of ours in its environment."""
        command = ["/usr/bin/python3", "-I", "-B", "-c", _START, str(self.folder), module, *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", *command]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd="/",
            env=_PLAIN,
        )


@pytest.fixture(scope="session")
def ordinary_user(required: list[str]) -> Iterator[OrdinaryUser]:
    """An ordinary user, with a copy of bento-tor and of what it needs."""
    with tempfile.TemporaryDirectory(prefix="bento-user-") as copy:
        ours = Path(copy) / "bento_tor"
        # With their bytecode, which he could not keep: he would compile all of it at each start.
        shutil.copytree(ROOT / "bento_tor", ours)
        for name in ("cli", "functions", "torrc_templates"):
            shutil.copytree(ROOT / name, ours / name)
        source = Path(sysconfig.get_path("platlib"))
        files = [file for name in required for file in importlib.metadata.files(name) or []]
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if (source / top).is_dir():
                shutil.copytree(source / top, Path(copy) / top)
            else:
                shutil.copy(source / top, copy)
        subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
        yield OrdinaryUser(Path(copy))


# --- boxes ------------------------------------------------------------------------------------------------------

# Sandboxes that wait ready in a box that runs nothing.
READY = 2
BOX_CONFIG = f"""
ready = {READY}
[policy]
host_stats = "full"
sessions = 6
[policy.limits]
wall_s = 20
memory_bytes = 67108864
"""


def _name_of(process: psutil.Process) -> str:
    """Its name; empty where it ended since it was listed."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _lives(process: psutil.Process | int) -> bool:
    """Whether it is there and no zombie. Between two looks it may go."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def lives() -> Callable[[psutil.Process | int], bool]:
    """Whether a process is there and no zombie."""
    return _lives


class RunningBox:
    """`bento-tor serve` as a user starts it."""

    def __init__(
        self,
        state: Path,
        *options: str,
        config: str = BOX_CONFIG,
        within: Callable[..., list[str]] = lambda *command: list(command),
    ) -> None:
        """`within`: makes a command line that runs somewhere else, for instance in other namespaces."""
        self.state = state
        self.address = f"unix:{state}/box.sock"
        (state.parent / "box.toml").write_text(config)
        self.log = (state.parent / "log").open("a+")
        self.process = subprocess.Popen(
            within(
                *[sys.executable, "-m", "bento_tor.cli", "serve", "--state", str(state), "--json"],
                *["--config", str(state.parent / "box.toml"), *options],
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(60_000):
            words = self.words()
            self.kill()
            self.process.stdout.close()
            self.log.close()
            pytest.fail(f"no box within a minute; it said: {words}")
        line = self.process.stdout.readline()
        self.told = json.loads(line) if line else {}

    def words(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def connect(self, **options: object) -> Box:
        from bento_tor.client import connect

        return connect(self.address, timeout_s=30, **options)  # type: ignore[arg-type]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def reader(self) -> psutil.Process:
        """The process that reads from clients: the oldest child that is no sandbox. (Numbers wrap round.)"""
        found = [child for child in psutil.Process(self.process.pid).children() if _name_of(child) not in ("bwrap", "")]
        return min(found, key=lambda child: child.create_time())

    def sandboxes(self) -> int:
        """How many run or wait ready."""
        return len(self.launchers())

    def launchers(self) -> list[psutil.Process]:
        """bubblewrap's outer processes, one for each."""
        return [child for child in psutil.Process(self.process.pid).children() if _name_of(child) == "bwrap"]

    def kill(self) -> None:
        """As the machine would: no time to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return status


@pytest.fixture
def ready_sandboxes() -> int:
    """How many sandboxes a box has that runs nothing."""
    return READY


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    """One box for the tests that do not end it."""
    running = RunningBox(tmp_path_factory.mktemp("box") / "s")
    yield running
    words = running.words()
    assert running.stop() == 0
    assert "Traceback" not in words, words


@pytest.fixture(scope="session")
def running_box() -> type[RunningBox]:
    """For tests that start boxes in their own way."""
    return RunningBox


@pytest.fixture
def new_box(tmp_path: Path) -> Iterator[Callable[..., RunningBox]]:
    """Boxes of a test's own."""
    made: list[RunningBox] = []

    def make(*options: str, **more: Any) -> RunningBox:
        made.append(RunningBox(tmp_path / "s", *options, **more))
        return made[-1]

    yield make
    for running in made:
        if running.process.poll() is None:
            running.stop()
        elif running.process.stdout is not None:
            running.process.stdout.close()
            running.log.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Poll until it is so."""

    def wait(what: Callable[[], object], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < deadline, "it did not come to be"
            time.sleep(0.05)

    return wait


@pytest.fixture
def bento(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, with a keyring of the test's own."""

    def run(*arguments: str, stdin: str = "", timeout_s: float = 180, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BENTO_TOR")}
        environment |= {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json"), **more}
        done = subprocess.run(
            [sys.executable, "-m", "bento_tor.cli", *arguments],
            input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


# --- long tests -------------------------------------------------------------------------------------------------


@pytest.fixture
def rounds(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Callable[[int, int], Iterator[tuple[int, random.Random]]]:
    """The rounds of a long test, each with a number and random numbers of its own: a few, or, in `make soak`, many.

    The many go on where they were stopped, also by a round that failed: that one comes again, with the same random
    numbers. What is done is kept in pytest's cache; `pytest --cache-clear` forgets it."""

    def give(short: int, long: int) -> Iterator[tuple[int, random.Random]]:
        cache, key = request.config.cache, f"soak/{request.node.name}"
        fresh = {"seed": random.randrange(2**32), "done": 0}
        soak = bool(os.environ.get("BENTO_TOR_SOAK")) and cache is not None
        state = (cache.get(key, None) or fresh) if soak else fresh
        print(f"seed {state['seed']}")
        for number in range(state["done"], long if soak else short):
            if soak:
                with capsys.disabled():
                    print(f"\n{request.node.name}: round {number + 1} of {long}, seed {state['seed']}", flush=True)
            yield number, random.Random(f"{state['seed']} {number}")
            if soak:
                cache.set(key, state | {"done": number + 1})
        if soak:
            cache.set(key, None)  # all done: the next soak begins anew

    return give
