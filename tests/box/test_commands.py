"""The client's commands as a user types them: words, exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.sandbox

Bento = Callable[..., CompletedProcess[str]]


@pytest.fixture
def client(box, bento: Bento) -> Bento:
    def run(*arguments: str, **more: str) -> CompletedProcess[str]:
        return bento("-q", "client", *arguments, BENTO_TOR_BOX=box.address, **more)

    return run


def write(tmp_path: Path, text: str, name: str = "f.py") -> str:
    (tmp_path / name).write_text(text)
    return name


@pytest.mark.parametrize(
    ("text", "status", "out", "err"),
    [
        ("def f(): return 0", 0, "0\n", ""),
        ("def f(): return None", 0, "", ""),
        ("def f(): return 2.5", 0, "2.5\n", ""),
        ("def f(): return {'a': 1}", 0, "{'a': 1}\n", ""),
        ("def f(): print('said'); return 'x'", 0, "x\n", ""),
        ("def f(): raise ValueError('no')", 8, "", "error: the function raised ValueError: no (line 1, in f)"),
        ("def f(): import sys; sys.exit(4)", 8, "", "exited:4"),
        ("def f():\n    while True: pass", 8, "", "killed:time"),
        ("def f(:", 3, "", "is not Python (line 1"),
        ("def f(): return '" + "y" * 200_000 + "'", 0, "y" * 200_000, ""),
        ("def f(): return '\\x1b[31m'", 0, "\x1b[31m\n", ""),
        ("# /// script\n# [tool.bento]\n# image = 'browser'\n# ///\ndef f(): 1", 7, "", "the image 'browser'"),
    ],
)
def test_run(client: Bento, tmp_path: Path, text: str, status: int, out: str, err: str) -> None:
    if "while True" in text:
        text = "# /// script\n# [tool.bento]\n# seconds = 1\n# ///\n" + text
    done = client("run", write(tmp_path, text))
    assert (done.returncode, done.stdout) == (status, out), done.stderr
    assert err in done.stderr


def test_run_writes_nothing_to_disk(client: Bento, tmp_path: Path) -> None:
    assert client("run", "hello").stdout == "hello world\n"
    assert os.listdir(tmp_path) == []


def test_arguments_are_literals_else_strings(client: Bento, tmp_path: Path) -> None:
    name = write(tmp_path, "def f(*a, **k): return repr((a, k))")
    assert client("run", name, "5", "x y", "[1]", "-3").stdout == "((5, 'x y', [1], -3), {})\n"
    assert client("run", name, "--call", "f(1, k='v')").stdout == "((1,), {'k': 'v'})\n"
    assert client("run", name, "1", "--call", "f()").returncode == 2


def test_lines_of_standard_input_are_its_input(client: Bento) -> None:
    assert client("run", "echo", stdin="a\n\n你好\nstop\nnot this\n").stdout == "a\n\n你好\n"
    assert client("run", "echo", stdin="a\nlast without newline").stdout == "a\nlast without newline\n"


def test_bytes_pass_as_they_are(client: Bento, tmp_path: Path) -> None:
    name = write(tmp_path, "def f():\n    for b in (b'\\xff', b'a', b'x' * 99999): api.send(b)")
    assert client("run", name, "-o", "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == b"\xffa" + b"x" * 99999
    assert json.loads(client("run", "hello", "-o", "out", "--json").stdout)["messages"] == ["hello world"]
    assert (tmp_path / "out").read_bytes() == b"hello world"


def test_json_is_one_object_whatever_happens(client: Bento, tmp_path: Path) -> None:
    good = json.loads(client("run", "add", "5", "12", "--json").stdout)
    assert (good["outcome"], good["messages"]) == ("returned", ["17"])
    bad = json.loads(client("run", write(tmp_path, "def f(): 1/0"), "--json").stdout)
    assert bad["outcome"] == "raised" and "ZeroDivisionError" in bad["detail"]
    worse = json.loads(client("run", "nothing.py", "--json").stdout)
    assert worse["error"]["exit_code"] == 3


def test_a_stored_function_from_upload_to_shutdown(client: Bento, tmp_path: Path) -> None:
    told = client("upload", "echo").stdout
    assert "stored as echo" in told and "bento1:" in told
    assert stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode) == 0o600
    assert "running as echo.1" in client("exec", "echo").stdout
    assert client("send", "echo", "one").returncode == 0
    assert client("send", "echo.1", "-", stdin="two\nlines").returncode == 0
    assert client("recv", "echo").stdout == "one\n"
    assert client("recv", "echo").stdout == "two\nlines\n"
    listed = json.loads(client("keys", "list", "--json").stdout)
    assert [row["name"] for row in listed["functions"]] == ["echo"]
    (session,) = json.loads(client("sessions", "--json").stdout)["sessions"]
    assert (session["name"], session["state"], session["offset"]) == ("echo.1", "running", 14)
    assert "bento1" not in json.dumps([listed, session])
    assert client("attach", "echo", stdin="three\nstop\n").stdout == "three\n"
    (session,) = json.loads(client("sessions", "--json").stdout)["sessions"]
    assert (session["state"], session["offset"]) == ("returned", 20)
    assert client("exec", "echo").returncode == 0
    assert "killed:user" in client("close", "echo").stdout
    assert "echo is erased" in client("shutdown", "echo").stdout
    gone = client("exec", "echo")
    assert gone.returncode == 3 and "no function 'echo'" in gone.stderr


def test_tickets_from_files_and_standard_input_and_never_from_the_command_line(client: Bento, tmp_path: Path) -> None:
    told = json.loads(client("upload", "echo", "--no-keyring", "--json").stdout)
    assert told["name"] is None and not (tmp_path / "keyring.json").exists()
    (tmp_path / "ticket").write_text(told["invocation"] + "\n")
    started = json.loads(client("exec", "@ticket", "--call", "echo()", "--no-keyring", "--json").stdout)
    refused = client("exec", told["invocation"])
    assert refused.returncode == 3 and "not" in refused.stderr and told["invocation"] not in refused.stderr
    assert "killed:user" in client("close", "-", stdin=started["ticket"]).stdout
    assert client("shutdown", "-", stdin=told["invocation"]).returncode == 3
    assert client("shutdown", "-", stdin=told["shutdown"]).returncode == 0
    assert client("shutdown", "-", stdin=told["shutdown"]).returncode == 7
    assert client("exec", "-", stdin="rubbish").returncode == 3
    assert not (tmp_path / "keyring.json").exists()


def test_a_full_disk_is_said(client: Bento, tmp_path: Path) -> None:
    for more in ([], ["--json"]):
        done = client("run", "hello", "-o", "/dev/full", *more)
        assert done.returncode == 3 and "cannot write the output: No space left" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_silent_function_is_no_box_that_cannot_be_reached(client: Bento, tmp_path: Path) -> None:
    client("upload", "echo")
    client("exec", "echo")
    done = client("recv", "echo", "--timeout", "4")
    assert done.returncode == 1 and "nothing came" in done.stderr


def test_a_keyring_that_is_no_file_is_not_replaced(client: Bento, tmp_path: Path) -> None:
    done = client("upload", "hello", BENTO_TOR_KEYRING="/dev/null")
    assert done.returncode == 3 and "--no-keyring" in done.stderr
    assert not Path("/dev/null").is_file()


def test_a_function_that_has_ended_is_told_by_recv(client: Bento, tmp_path: Path) -> None:
    client("upload", write(tmp_path, "def f(): raise ValueError('x')"))
    client("exec", "f")
    done = client("recv", "f")
    assert done.returncode == 8 and "ValueError" in done.stderr


def test_the_policy_is_shown(client: Bento) -> None:
    assert json.loads(client("policy", "--json").stdout)["host_stats"] == "full"
    assert "limits.memory_bytes" in client("policy").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "hello", "--box", "x"], 3, "is not a box's address"),
        (["run", "hello", "--box", "a" * 56 + ".onion"], 3, "is not an onion address"),
        (["run", "hello", "--box", "unix:/nonexistent"], 6, "no box listens"),
        (["run", "hello", "--timeout", "x"], 2, "--timeout"),
        (["run", "hello", "--image", "browser"], 7, "asks for the image 'browser'; this box has python"),
        (["upload", "hello", "--image", "a b"], 3, "'a b' is no name of an image"),
        (["open", "nobody"], 3, "no session 'nobody'"),
        (["exec", "@nofile"], 3, "cannot read nofile"),
        (["run", "hello", "--network", "/nonexistent", "--box", "unix:/x"], 3, "/nonexistent"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(
    client: Bento, arguments: list[str], status: int, words: str
) -> None:
    done = client(*arguments)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert done.stdout == ""


def test_a_tor_that_is_not_there_is_said(client: Bento) -> None:
    from bento_tor.controller.onion import onion_address

    done = client("run", "hello", "--box", onion_address(b"x" * 32), "--socks", "127.0.0.1:1")
    assert done.returncode == 4 and "no tor answers as a SOCKS proxy at 127.0.0.1:1" in done.stderr


def test_the_functions_of_2021_run_as_they_were_written(client: Bento, tmp_path: Path) -> None:
    """A global api, str or bytes, recv, poll, and a return value of any type (faults 5, 6, 7 and 14 of 2021)."""
    old = "def hello(name):\n    api.send('hello ' + name)\n    while not api.poll(): pass\n    return [api.recv()]"
    assert client("run", write(tmp_path, old), "世界", stdin="x\n").stdout == "hello 世界\n[b'x']\n"
