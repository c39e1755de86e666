"""`bento-tor network` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bento_tor.controller.processes import find_by_arguments

PROGRAM = "import sys; from bento_tor.cli.main import main; sys.argv[0] = 'bento-tor'; main()"


def bento(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BENTO_", "XDG_"))}
    if home is not None:
        environment["HOME"] = str(home)
    argv = [sys.executable, "-c", PROGRAM, "network", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["up", "--exits", "9"], 3, "9 exits are more than 5 relays"),
        (["up", "--voting-interval", "7"], 3, "not legal"),
        (["up", "--relays", "many"], 2, "not a valid integer"),
        (["up", "--timeout", "0"], 2, "invalid value for '--timeout'"),
        (["status"], 3, "there is no network in"),
        (["logs", "r1"], 3, "there is no network in"),
        (["env"], 3, "there is no network in"),
        (["sideways"], 2, "no such command"),
    ],
)
def test_a_mistake_gets_one_sentence_and_its_exit_code(
    arguments: list[str], code: int, said: str, short_path: Path
) -> None:
    done = bento(*arguments, *(["--dir", str(short_path / "n")] if arguments[0] != "sideways" else []))
    assert done.returncode == code
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (short_path / "n").exists()


def test_a_path_too_long_for_sockets_is_one_sentence(short_path: Path) -> None:
    done = bento("up", "--dir", str(short_path / ("x" * 90)))
    assert done.returncode == 3
    assert "too long" in done.stderr
    assert "shorter path" in done.stderr


def test_an_error_is_an_object_for_programs(short_path: Path) -> None:
    done = bento("status", "--dir", str(short_path / "n"), "--json")
    told = json.loads(done.stdout)["error"]
    assert told["exit_code"] == done.returncode == 3
    assert told["hint"]


def test_down_on_nothing_says_so(short_path: Path) -> None:
    done = bento("down", "--dir", str(short_path / "n"))
    assert done.returncode == 0
    assert "there is no network in" in done.stdout
    assert json.loads(bento("down", "--dir", str(short_path / "n"), "--json").stdout)["found"] is False


def test_the_default_directory_is_under_the_users_state(short_path: Path) -> None:
    done = bento("status", home=short_path)
    assert str(short_path / ".local/state/bento-tor/network") in done.stderr


@pytest.mark.tor
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_it_leaves_nothing(short_path: Path, number: int) -> None:
    place = short_path / "deep" / "network"
    argv = [sys.executable, "-c", PROGRAM, "network", "up", "--dir", str(place)]
    # In a session of its own, as from a script: the tors are not in its process group either way.
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        deadline = time.monotonic() + 60
        while not find_by_arguments(str(place / "r3" / "torrc")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(3):
            started.send_signal(number)
        said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert said[0] == ""
    assert said[1].splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in said[1]
    assert not (short_path / "deep").exists()
    assert not any(
        find_by_arguments(str(place / name / "torrc")) for name in ("a1", "a2", "a3", "r1", "r2", "r3", "c1")
    )
