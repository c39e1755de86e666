"""`setup-relay` cut short: by a signal at every step, by a tor that dies or hangs, by a full or read-only disk. Each
file is wholly old or wholly new, tor starts with either, and the next run completes it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bento_tor.controller import debian
from bento_tor.controller.changeover import Journal
from bento_tor.controller.dropin import Ours, with_include
from bento_tor.controller.onion import load_seed, onion_address
from bento_tor.controller.processes import find_by_arguments
from bento_tor.controller.settings import running
from bento_tor.network.ports import allocate_ports

STEPS_AT_LEAST = 15


def free_port() -> str:
    return str(allocate_ports(1)[0])


def options() -> tuple[str, ...]:
    return ("--nickname", "x", "--orport", free_port(), "--yes")


def told(tor: Any) -> object:
    with tor.connect() as connection:
        return running(connection)


def contents(tor: Any) -> dict[str, bytes]:
    return {name: entry[3] for name, entry in tor.files().items() if not name.endswith(".bento-new")}


def check_whole(tor: Any, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    for name, content in contents(tor).items():
        assert content in (old.get(name, b""), new.get(name, b"")), f"{name} is neither old nor new"
    assert tor.verifies(), "tor would not start"


@contextmanager
def when_replaced(tor: Any, act: Callable[[], object]) -> Iterator[None]:
    """Do that as soon as the torrc has our line: between the files and the reload."""
    done = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 60
        while b"%include" not in tor.torrc.read_bytes() and time.monotonic() < deadline:
            if done.wait(0.0002):
                return
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.parametrize("undo", [False, True], ids=["set-up", "undo"])
def test_kill_9_at_every_step(new_tor: Callable[..., Any], setup_relay: Any, undo: bool) -> None:
    tor, wanted, back = new_tor(), options(), ("--undo", "--yes")
    tor.start()
    before, said = tor.files(), told(tor)
    assert setup_relay(tor.root, *wanted).status == 0
    new, new_said = contents(tor), told(tor)
    old = {name: entry[3] for name, entry in before.items()}
    victim, other = (back, wanted) if undo else (wanted, back)
    if not undo:
        assert setup_relay(tor.root, *back).status == 0
    steps: list[str] = []
    while True:
        if not undo:  # from nothing each time: the keys are part of it
            shutil.rmtree(tor.data / "bento-box", ignore_errors=True)
            shutil.rmtree(tor.root / "state", ignore_errors=True)
        killed = setup_relay(tor.root, *victim, kill_at=len(steps))
        if killed.status != -signal.SIGKILL:
            break
        steps.append(setup_relay.note)
        check_whole(tor, old, new)
        # The next run completes it, be it the same once more or the opposite.
        following = victim if len(steps) % 2 else other
        done = setup_relay(tor.root, *following)
        assert done.status == 0 or (following == back and "nothing to undo" in done.stderr), (steps[-1], done)
        if following == wanted:
            assert contents(tor) == new and told(tor) == new_said, steps[-1]
            key = load_seed(tor.root / "state/keys/onion.seed")
            assert (tor.data / "bento-box/hostname").read_text().strip() == onion_address(key), steps[-1]
        else:
            assert tor.files() == before and told(tor) == said, steps[-1]
        assert not (tor.root / "state/setup.json").exists() and tor.alive, steps[-1]
        if (following == back) == undo:
            assert setup_relay(tor.root, *other).status == 0
    assert killed.status == 0, killed
    assert len(steps) >= STEPS_AT_LEAST and any("SIGNAL" in step for step in steps), steps
    print(f"{len(steps)} steps:", *steps, sep="\n")


def test_a_tor_that_dies_at_the_reload(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    tor, wanted = new_tor(), options()
    tor.start()
    before = tor.files()

    def kill() -> None:
        tor.signal(signal.SIGKILL)
        tor.process.wait()

    with when_replaced(tor, kill):
        done = setup_relay(tor.root, *wanted)
    assert done.status == 4 and "systemctl start tor@default" in done.stderr, done
    assert tor.files() == before and not (tor.root / "state" / "setup.json").exists()
    tor.start()
    assert setup_relay(tor.root, *wanted).status == 0


def test_a_tor_that_hangs_is_told_by_the_next_run(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    tor, wanted = new_tor(), options()
    tor.start()
    before, said = tor.files(), told(tor)
    with when_replaced(tor, lambda: tor.signal(signal.SIGSTOP)):
        done = setup_relay(tor.root, *wanted)
    assert done.status == 4 and "cannot be told" in done.stderr, done
    assert tor.files() == before
    tor.signal(signal.SIGCONT)
    assert setup_relay(tor.root, "--undo", "--yes").status == 0
    assert tor.files() == before and told(tor) == said and tor.alive
    assert setup_relay(tor.root, *wanted).status == 0


def test_a_control_socket_that_goes_mid_way(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    """The connection lives on and the set-up with it; what comes after finds no socket, and says so."""
    tor, wanted = new_tor(), options()
    tor.start()
    with when_replaced(tor, tor.control.path.unlink):
        assert setup_relay(tor.root, *wanted).status == 0
    new = tor.files()
    done = setup_relay(tor.root, "--undo", "--yes")
    assert done.status == 4 and "nothing there" in done.stderr
    assert tor.files() == new and tor.alive


def test_ctrl_c_puts_all_back(new_tor: Callable[..., Any], bento_process: Callable[..., Any]) -> None:
    tor = new_tor()
    tor.start()
    before, said = tor.files(), told(tor)
    process = bento_process(tor.root, *options())
    with when_replaced(tor, lambda: process.send_signal(signal.SIGINT)):
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "putting back" in errors, errors
    assert tor.files() == before and told(tor) == said and tor.alive
    assert not (tor.root / "state" / "setup.json").exists()


def test_a_tor_that_does_not_run(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    tor, wanted = new_tor(), options()
    before = tor.files()
    done = setup_relay(tor.root, *wanted)
    assert done.status == 4 and "systemctl start tor@default" in done.stderr, done
    assert tor.files() == before
    tor.start()
    assert setup_relay(tor.root, *wanted).status == 0
    tor.stop()
    assert setup_relay(tor.root, "--undo", "--yes").status == 0, "files can be put back without it"
    assert tor.files() == before


def test_an_orport_that_is_taken(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    """A reload would end tor; the trial on the running tor finds it out before."""
    tor = new_tor()
    tor.start()
    before, said = tor.files(), told(tor)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        done = setup_relay(tor.root, "--nickname", "x", "--orport", str(taken.getsockname()[1]), "--yes")
    assert done.status == 4 and "Failed to bind" in done.stderr, done
    assert tor.files() == before and told(tor) == said and tor.alive


def test_another_tor_at_the_control_socket(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    one, other = new_tor(), new_tor()
    other.start()
    one.torrc.write_text(one.torrc.read_text() + f"ControlSocket {other.control.path}\n")
    before = other.files()
    done = setup_relay(one.root, *options())
    assert done.status == 3 and str(other.torrc) in done.stderr, done
    assert other.files() == before


def test_an_instance_beside_the_default_one(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    tor = new_tor(instance="bento")
    tor.start()
    before = tor.files()
    done = setup_relay(tor.root, "--instance", "bento", "--yes", "--json")
    assert done.status == 0 and done.told["files"] == [str(tor.torrc), str(tor.dropin)]
    assert "tor@bento" not in done.stderr and "ORPort" not in tor.dropin.read_text()
    other = setup_relay(tor.root, "--instance", "bento", "--yes", state=tor.root / "other")
    assert other.status == 3 and "serves the box in" in other.stderr
    assert setup_relay(tor.root, "--instance", "bento", "--undo", "--yes").status == 0
    assert tor.files() == before


def test_an_operators_edit_between_stays(new_tor: Callable[..., Any], setup_relay: Any) -> None:
    tor = new_tor()
    tor.start()
    assert setup_relay(tor.root, *options()).status == 0
    with tor.torrc.open("a") as file:
        file.write("ContactInfo me\n")
    assert setup_relay(tor.root, "--undo", "--yes").status == 0
    text = tor.torrc.read_text()
    assert text.endswith("ContactInfo me\n") and "bento" not in text and not tor.dropin.exists()


# --- disks, in a mount namespace of the run's own -----------------------------------------------------------------

FULL = "mount -t tmpfs -o size=64k none {over} && cp -a {kept}/. {over} && (cat /dev/zero > {over}/fill; true) 2>&-"
READ_ONLY = "mount --bind {over} {over} && mount -o remount,bind,ro {over}"


@pytest.mark.parametrize(
    ("disk", "folder", "words"),
    [(FULL, "etc/tor", "No space left"), (FULL, "state", "No space left"), (READ_ONLY, "etc/tor", "Read-only")],
    ids=["full, torrc", "full, state", "read-only"],
)
def test_a_disk_that_takes_nothing(new_tor: Callable[..., Any], disk: str, folder: str, words: str) -> None:
    tor = new_tor()
    tor.start()
    over, kept = tor.root / folder, tor.root / "kept"
    over.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", str(over), str(kept)], check=True)
    before, said = tor.files(), told(tor)
    command = [sys.executable, "-m", "bento_tor.cli", "setup-relay", "--root", str(tor.root)]
    command += ["--state", str(tor.root / "state"), *options()]
    script = f"{disk.format(over=over, kept=kept)}; exec {' '.join(command)}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and words in done.stderr, done
    assert tor.files() == before and told(tor) == said and tor.alive


# --- a service manager ---------------------------------------------------------------------------------------------


def test_a_tor_that_died_is_started_by_the_service_manager(
    new_tor: Callable[..., Any],
    bento_process: Callable[..., Any],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    """`systemctl start` is asked for where systemd runs the system; here a program of that name starts tor."""
    tor = new_tor()
    tor.start()
    before = tor.files()
    (tor.root / "run/systemd/system").mkdir(parents=True)
    systemctl = tmp_path / "systemctl"
    argv = f"tor --defaults-torrc {tor.defaults} -f {tor.torrc} --RunAsDaemon 1"
    systemctl.write_text(f'#!/bin/sh\n[ "$*" = "start tor@default" ] && {argv} >/dev/null\n')
    systemctl.chmod(0o755)
    process = bento_process(tor.root, *options(), path=tmp_path)

    def kill() -> None:
        tor.signal(signal.SIGKILL)
        tor.process.wait()

    with when_replaced(tor, kill):
        errors = process.communicate(timeout=60)[1]
    try:
        assert process.returncode == 4 and "runs again" in errors, errors
        assert tor.files() == before
    finally:
        with tor.connect() as connection:
            connection.ask("SIGNAL HALT")
        eventually(lambda: not find_by_arguments(str(tor.torrc), program="tor"))  # it writes until it ends


@pytest.mark.parametrize("more", [("--yes",), ("--undo", "--yes"), ("--dry-run",)])
def test_a_run_on_another_tor_is_not_completed_beside_it(
    bento: Callable[..., Any], tmp_path: Path, more: tuple[str, ...]
) -> None:
    """It may be at work: who runs on one tor has not locked the files of the other."""
    root, state = tmp_path / "root", tmp_path / "state"
    for path in ("etc/tor/torrc", "usr/share/tor/tor-service-defaults-torrc"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    mine = debian.find(root)
    other = debian.Instance("two", str(root), f"{tmp_path}/two/torrc", mine.defaults_path)
    other.folder.mkdir(parents=True)
    other.torrc.write_bytes(with_include(b"", other.dropin))
    state.mkdir()
    kept = msgspec.json.encode(Journal(other, Ours(None, included=False)))
    (state / "setup.json").write_bytes(kept)
    done = bento("setup-relay", "--root", str(root), "--state", str(state), *more)
    assert done.returncode == 3 and "tor@two" in done.stderr, done.stderr
    assert (state / "setup.json").read_bytes() == kept and other.torrc.read_bytes()
