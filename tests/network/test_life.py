"""Networks that come and go: whatever ends a start, nothing is left of it. Small networks, to be quick."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bento_tor.controller.processes import find_by_arguments, start
from bento_tor.errors import BentoError, ConfigError, TorError
from bento_tor.network import Network, NetworkSettings, down, status, up
from bento_tor.network import state as states

pytestmark = pytest.mark.tor

SMALL = NetworkSettings(authorities=2, relays=3, exits=1, clients=1)
NODES = ("a1", "a2", "r1", "r2", "r3", "c1")


@pytest.fixture
def place(short_path: Path) -> Iterator[Path]:
    """Where a network of this test may live; after the test nothing runs there."""
    network = short_path / "network"
    yield network
    down(network)


def tors_in(place: Path) -> list[str]:
    return [name for name in NODES if find_by_arguments(str(place / name / "torrc"))]


def nothing_is_left(place: Path) -> bool:
    return not place.exists() and not tors_in(place)


def when(word: str, act: Callable[[], object]) -> Callable[[str], None]:
    """A report that acts once, at the first step that begins with `word`."""
    done: list[str] = []

    def report(text: str) -> None:
        if text.startswith(word) and not done:
            done.append(text)
            act()

    return report


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_anything_runs(place: Path, number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        up(SMALL, place, report=when("making keys", lambda: os.kill(os.getpid(), number)))
    assert nothing_is_left(place)


@pytest.mark.parametrize("word", ["starting a1", "starting r2", "starting c1", "0 of 6"])
def test_ctrl_c_twice_in_the_middle(place: Path, word: str) -> None:
    def twice() -> None:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)  # ignored: tidying up is under way
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        up(SMALL, place, report=when(word, twice))
    assert nothing_is_left(place)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_tor_that_dies_in_the_middle(place: Path) -> None:
    def kill_one() -> None:
        pid = find_by_arguments(str(place / "r2" / "torrc"))[0].pid
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(TorError, match="tor r2 died"):
        up(SMALL, place, report=when("0 of 6", kill_one))
    assert nothing_is_left(place)


def test_a_tor_that_dies_at_its_start_says_why(place: Path) -> None:
    def spoil() -> None:
        with (place / "r1" / "torrc").open("a") as torrc:
            torrc.write("NoSuchOption 1\n")

    with pytest.raises(TorError, match="tor r1 died: .*Unknown option 'NoSuchOption'"):
        up(SMALL, place, report=when("starting a1", spoil))
    assert nothing_is_left(place)


def test_a_port_that_is_taken_meanwhile(place: Path) -> None:
    import socket

    taken: list[socket.socket] = []

    def take() -> None:
        port = Network.load(place).node("r1").or_port
        taken.append(socket.create_server(("127.0.0.1", port)))

    try:
        with pytest.raises(TorError, match="tor r1 died: .*Address already in use") as error:
            up(SMALL, place, report=when("starting a1", take))
    finally:
        for each in taken:
            each.close()
    assert "port" in error.value.hint
    assert nothing_is_left(place)


def test_a_network_without_progress_is_given_up(place: Path) -> None:
    def stop_one() -> None:
        for name in ("a1", "a2"):
            os.kill(find_by_arguments(str(place / name / "torrc"))[0].pid, signal.SIGSTOP)

    begun = time.monotonic()
    with pytest.raises(BentoError) as error:
        up(SMALL, place, timeout_s=4, report=when("0 of 6", stop_one))
    assert error.value.hint
    assert time.monotonic() - begun < 60
    assert nothing_is_left(place)


@pytest.mark.parametrize("word", ["making keys", "starting r2"])
def test_a_starter_killed_with_9(place: Path, word: str) -> None:
    """What it started is found and ended from the directory alone, also what it could not write down."""
    program = f"""
import os, signal, sys
from pathlib import Path
from bento_tor.network import NetworkSettings, up
def report(text):
    if text.startswith({word!r}):
        os.kill(os.getpid(), signal.SIGKILL)
up(NetworkSettings(2, 3, 1, 1), Path(sys.argv[1]), report=report)
"""
    done = subprocess.run([sys.executable, "-c", program, str(place)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert states.maybe_load(place) is not None
    if word.startswith("starting"):
        assert tors_in(place)[:2] == ["a1", "a2"]
        # As if it had been killed one instant earlier: the last tor is not written down.
        state = states.load(place)
        states.save(place, states.State(state.settings, state.nodes, created=state.created))
    with pytest.raises(ConfigError, match="already"):
        up(SMALL, place)
    assert not [node for node in status(place) if node.bootstrap.done]
    assert down(place).found
    assert nothing_is_left(place)


def test_a_whole_life(tor_network: Network, place: Path, tmp_path: Path) -> None:
    """Up beside the other network of the run; one tor dies; a stranger's file; adopted processes; down,
    twice."""
    network = up(SMALL, place)
    assert network.ready
    assert 0 < network.timings.keygen_s < network.timings.first_reply_s <= network.timings.ready_s
    box = start([sys.executable, "-c", "import time; time.sleep(300)"], output=tmp_path / "out")
    (place / "box").mkdir()
    network.adopt("box", box.pid, directory=place / "box")
    (place / "mine.txt").write_text("keep me")
    process = network.maybe_process(network.node("r3"))
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = {node.name: node for node in status(place)}
    assert not found["r3"].alive
    assert found["c1"].alive
    assert found["c1"].bootstrap.done
    ended = down(place)
    assert ended.found
    assert ended.ended == len(NODES)  # five tors and the box
    assert not ended.removed
    assert not box.alive
    assert [path.name for path in place.iterdir()] == ["mine.txt"]
    assert not tors_in(place)
    assert not down(place).found
    shutil.rmtree(place)
    assert all(node.alive for node in status(tor_network.directory))


def test_a_directory_in_use_is_not_touched(place: Path) -> None:
    place.mkdir()
    (place / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="is not empty"):
        up(SMALL, place)
    assert (place / "mine.txt").read_text() == "keep me"
    shutil.rmtree(place)


def test_an_empty_directory_of_the_users_stays(place: Path) -> None:
    place.mkdir()
    with pytest.raises(KeyboardInterrupt):
        up(SMALL, place, report=when("starting r1", lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert list(place.iterdir()) == []
    place.rmdir()


def test_a_place_that_cannot_be_made(short_path: Path) -> None:
    (short_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        up(SMALL, short_path / "file" / "network")
    with pytest.raises(ConfigError, match="cannot be used"):
        up(SMALL, short_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        up(SMALL, Path("/proc/network"))


def test_a_full_disk(short_path: Path) -> None:
    """Needs root, for a small file system: too small at first; then large enough, and filled under the
    network."""
    disk = short_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(ConfigError, match="has only .* free"):
            up(SMALL, disk / "network")
        assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        with pytest.raises(BentoError, match="disk is full|No space left"):
            up(SMALL, disk / "network", timeout_s=15, report=when("starting a1", lambda: fill(disk / "rest")))
        assert [path.name for path in disk.iterdir()] == ["rest"]
        assert not tors_in(disk / "network")
    finally:
        # The kernel may still be closing the files of who was killed just now.
        deadline = time.monotonic() + 20
        while (done := subprocess.run(["umount", str(disk)], capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1024 * 1024)) == 1024 * 1024:
            pass
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(16)):
            pass
