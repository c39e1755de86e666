"""Processes by pid and start time, with real ones."""

import signal
import sys
import time
from pathlib import Path

from bento_tor.controller.processes import ProcessId, end, find_by_arguments, identify, start

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def wait_for(text: str, path: Path) -> None:
    deadline = time.monotonic() + 10
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_ends_when_asked(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", SLEEP], output=tmp_path / "out")
    assert process.alive
    assert identify(process.pid) == process
    assert end([process], ask=signal.SIGTERM, patience_s=10) == []
    assert not process.alive
    assert identify(process.pid) is None


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", DEAF], output=tmp_path / "out")
    wait_for("deaf", tmp_path / "out")
    assert end([process], ask=signal.SIGINT, patience_s=0.2) == [process]
    assert not process.alive


def test_a_successor_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", SLEEP], output=tmp_path / "out")
    other = ProcessId(process.pid, process.started + 1)
    assert not other.alive
    assert end([other], ask=signal.SIGKILL, patience_s=1) == []
    assert process.alive
    end([process], ask=signal.SIGKILL, patience_s=10)


def test_a_process_is_found_by_its_argument(tmp_path: Path) -> None:
    mark = str(tmp_path / "torrc")
    process = start([sys.executable, "-c", SLEEP, mark], output=tmp_path / "out")
    assert find_by_arguments(mark) == [process]
    assert find_by_arguments(mark + "x") == []
    assert find_by_arguments(mark, program="tor") == [], "an editor of that file is not ended for a tor"
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    assert find_by_arguments(mark, program=name) == [process]
    end([process], ask=signal.SIGTERM, patience_s=10)


def test_ending_nothing_is_nothing() -> None:
    assert end([], ask=signal.SIGTERM, patience_s=1) == []
    assert end([ProcessId(2**22 - 1, 1)], ask=signal.SIGTERM, patience_s=1) == []
