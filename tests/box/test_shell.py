"""The interactive shell against a real box: by a pipe, and by a real pseudo-terminal."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.sandbox

ONE = "def one(): return '一行'"
TWO = "def two(名字):\n    return '你好，' + 名字"
THREE = "def three():\n    x = '世界'\n    api.send(x + ' ' + api.recv().decode())"


@pytest.fixture
def piped(box, bento: Callable[..., CompletedProcess[str]]) -> Callable[..., CompletedProcess[str]]:
    def run(*lines: str) -> CompletedProcess[str]:
        return bento("-q", "client", "shell", BENTO_TOR_BOX=box.address, stdin="".join(f"{line}\n" for line in lines))

    return run


@pytest.fixture
def terminal(box, terminals):
    shown = terminals("client", "shell", BENTO_TOR_BOX=box.address)
    shown.wait_for_prompt()
    return shown


# --- by a pipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "call", "said"),
    [(ONE, "one", "一行\n"), (TWO, "two two('世界')", "你好，世界\n"), (TWO, "two 世界", "你好，世界\n")],
)
def test_a_function_of_any_number_of_lines_is_stored_and_run(piped, code: str, call: str, said: str) -> None:
    name = call.split()[0]
    done = piped(f"store {name}", code, "", f"exec {call}", f"recv {name}.1", f"shutdown {name}")
    assert done.stdout == f"stored as {name}\nrunning as {name}.1\n{said}{name} is erased\n"
    assert done.returncode == 0


def test_input_reaches_a_function_of_three_lines(piped) -> None:
    done = piped("store", "three", THREE, "", "exec three", "open three.1", "send 再见", "recv", "shutdown three")
    assert done.stdout == "stored as three\nrunning as three.1\n世界 再见\nthree is erased\n"


def test_the_example_of_2021(piped) -> None:
    code = "def add(x,y):\n    sum=x+y\n    return sum"
    done = piped("store add2", code, "", "exec add2 add(5,12)", "open add2", "recv", "exit")
    assert done.stdout.splitlines()[2:] == ["17"]


def test_at_the_end_of_a_pipe_open_sessions_are_waited_for(piped) -> None:
    done = piped("store echo", "exec echo", "open echo.1", "send a", "send echo.1 b  c")
    assert done.stdout.splitlines()[2:] == ["a", "b  c"]
    again = piped("sessions", "shutdown echo")
    assert "returned" in again.stdout


def test_run_in_one_go(piped, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(*a): print('printed'); return repr(a)")
    assert piped("run add 5 12", "run f.py f(1, '二')", 'run f.py "a b" -3').stdout == "17\n(1, '二')\n('a b', -3)\n"
    assert not (tmp_path / "keyring.json").exists() or "token" not in (tmp_path / "keyring.json").read_text()


def test_what_fails_does_not_stop_the_rest_and_the_first_code_counts(piped, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(): raise ValueError('不行')")
    done = piped("run bad.py", "nonsense", "exec nobody", "# a remark", "", "run hello")
    assert (done.returncode, done.stdout) == (8, "hello world\n")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "不行" in errors[0] and "nonsense" in errors[1] and "nobody" in errors[2]


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (["store f", "def f(:", ""], 3, "is not Python (line 1"),
        (["store f", ""], 3, "there is no code"),
        (["store", ""], 3, "a function needs a name"),
        (["store nothing.py"], 3, "cannot read nothing.py"),
        (["exec"], 2, "name a function"),
        (["exec -"], 2, "name a function"),
        (["open"], 2, "name a session"),
        (["recv"], 2, "none is open"),
        (["send"], 2, "none is open"),
        (["exec f 'unclosed"], 2, "cannot be read"),
        (["shutdown nobody"], 3, "no function 'nobody'"),
        (["frobnicate"], 2, "there is no word"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(piped, lines: list[str], code: int, said: str) -> None:
    done = piped(*lines)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_a_line_that_is_no_text_is_refused(box, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bento_tor.cli", "client", "shell", "--box", box.address],
        input=b"store \xff\nrun hello\n", capture_output=True, timeout=60,
        env=os.environ | {"BENTO_TOR_KEYRING": str(tmp_path / "k")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, b"hello world\n") and b"no UTF-8" in done.stderr


def test_help_and_policy(piped) -> None:
    done = piped("help", "policy")
    assert "store [FILE | NAME]" in done.stdout and "limits.memory_bytes" in done.stdout


# --- at a terminal --------------------------------------------------------------------------------------------------


def test_typed_code_is_stored_and_its_output_comes_by_itself(terminal, tmp_path: Path) -> None:
    terminal.type("store one\n")
    terminal.wait_for("ended by an empty line")
    terminal.type(ONE + "\n\n")
    terminal.wait_for("stored as one")
    terminal.wait_for_prompt()
    terminal.type("exec one\n")
    terminal.wait_for("running as one.1")
    terminal.wait_for_prompt()
    terminal.type("open one.1\n")
    terminal.wait_for("one.1: 一行", "one.1 has ended (returned)")
    terminal.wait_for_prompt()
    terminal.type("store two\n")
    terminal.wait_for("ended by an empty line")
    terminal.type(TWO + "\n\n")
    terminal.wait_for("stored as two")
    terminal.wait_for_prompt()
    terminal.type("exec two('界')\n")
    terminal.wait_for("running as two.1")
    terminal.wait_for_prompt()
    terminal.type("recv two\n")
    terminal.wait_for("你好，界")
    terminal.wait_for_prompt()
    terminal.type("exit\n")
    assert terminal.end() == 0
    assert stat.S_IMODE((tmp_path / "shell_history").stat().st_mode) == 0o600
    history = (tmp_path / "shell_history").read_text()
    assert "exec two('界')" in history and "def" not in history


def test_a_session_talks_while_a_line_is_typed_and_is_left_running(terminal) -> None:
    terminal.type("store three\n")
    terminal.wait_for("ended by an empty line")
    # As a terminal pastes it: an empty line within does not end it.
    terminal.type("\x1b[200~" + THREE.replace("\n", "\n\n", 1) + "\x1b[201~")
    terminal.type("\n\n")
    terminal.wait_for("stored as three")
    terminal.wait_for_prompt()
    terminal.type("exec three\n")
    terminal.wait_for("running as three.1")
    terminal.wait_for_prompt()
    terminal.type("open three.1\n")
    terminal.wait_for("three.1 is open")
    terminal.wait_for_prompt()
    terminal.type("send 你们\n")
    terminal.wait_for("three.1: 世界 你们", "three.1 has ended (returned)")
    terminal.type("exec three\n")
    terminal.wait_for("running as three.2")
    terminal.wait_for_prompt()
    terminal.type("open three.2\n")
    terminal.wait_for("three.2 is open")
    terminal.wait_for_prompt()
    terminal.type("\x04")
    terminal.wait_for("left running: 'bento-tor client attach three.2'")
    assert terminal.end() == 0


def test_ctrl_c_leaves_a_run_open(terminal, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("def slow():\n    api.send('here')\n    return api.recv()")
    terminal.type("run slow.py\n")
    terminal.wait_for("here")
    terminal.type("\x03")
    terminal.wait_for("it goes on as slow.1")
    terminal.wait_for_prompt()
    terminal.type("send slow.1 done\n")
    terminal.wait_for("done", "slow.1 has ended (returned)")
    terminal.wait_for_prompt()
    # It was stored for this run only.
    terminal.type("exec slow\n")
    terminal.wait_for("no function 'slow'")


def test_hostile_output_drives_nothing(terminal, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("def evil(): api.send('\\x1b]0;owned\\x07\\x9b31m\\u202e\\nbento> lies')")
    terminal.type("run evil.py\n")
    terminal.wait_for("\\x1b]0;owned\\x07\\x9b31m\\u202e")
    assert b"\x1b]0;owned" not in terminal.seen


def test_tickets_are_not_in_the_history(terminal, tmp_path: Path) -> None:
    ticket = "bento1:unix:/x:session:" + "A" * 43
    terminal.type(f"open {ticket}\n")
    terminal.wait_for("a ticket is a secret")
    terminal.type("help\n")
    terminal.wait_for("these words")
    terminal.type("exit\n")
    terminal.end()
    assert "help" in (tmp_path / "shell_history").read_text() and ticket not in (tmp_path / "shell_history").read_text()


def test_tab_completes_words_and_names(terminal) -> None:
    terminal.type("sess\t")
    terminal.wait_for("sessions")
    terminal.type("\x15run hel\t")
    terminal.wait_for("hello")
    terminal.type("\n")
    terminal.wait_for("hello world")
