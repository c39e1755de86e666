"""`bento-tor function`: as an author types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest

from bento_tor import resources
from bento_tor.client import catalogue, checking
from bento_tor.client.checking import ImageFacts, Surroundings
from bento_tor.policy.manifest import Manifest
from bento_tor.sandbox import images

Bento = Callable[..., CompletedProcess[str]]
ASKS = """
# /// script
# [tool.bento]
# store = true
# egress = "exit"
# ///
def asks():
    print("to the log")
    api.pad(5000)
    api.store.put("a", b"12345")
    api.send(str(api.store.list()["a"]["bytes"]))
    try:
        api.connect("198.51.100.7", 80, 5)
    except OSError as why:
        api.send(type(why).__name__)
    return api.args
"""


@pytest.fixture
def function(bento: Bento) -> Bento:
    return lambda *arguments, **more: bento("function", *arguments, **more)


def write(folder: Path, text: str, name: str = "f.py") -> str:
    (folder / name).write_text(text)
    return name


# --- new ------------------------------------------------------------------------------------------------------------


def test_what_new_writes_passes_its_check(function: Bento, tmp_path: Path) -> None:
    assert function("new", "mine").stdout == "mine.py\n"
    done = function("check", "mine.py", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["fits"], told["findings"]) == (0, True, [])
    assert told["manifest"]["entry"] == "mine"


def test_new_never_overwrites(function: Bento, tmp_path: Path) -> None:
    write(tmp_path, "x = 1", "mine.py")
    done = function("new", "mine")
    assert (done.returncode, (tmp_path / "mine.py").read_text()) == (3, "x = 1")
    os.symlink("nowhere", tmp_path / "link.py")
    assert function("new", "link").returncode == 3
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", "1st", "a b", "class", "api", "hello", "ü", "x" * 65, "-x", "a\n"]
)
def test_a_name_that_cannot_be_is_refused(function: Bento, tmp_path: Path, name: str) -> None:
    assert function("new", "--", name).returncode == 3
    assert os.listdir(tmp_path) == []


def test_new_says_where_it_cannot_write(function: Bento) -> None:
    done = function("new", "mine", "--dir", "nowhere")
    assert (done.returncode, "cannot write nowhere/mine.py" in done.stderr) == (3, True)


# --- list, show -----------------------------------------------------------------------------------------------------


def test_list_has_all_that_ship_with_what_they_ask_for(function: Bento) -> None:
    found = json.loads(function("list", "--json").stdout)["functions"]
    assert [entry["name"] for entry in found] == resources.shipped_functions()
    assert all(entry["line"] and set(entry["manifest"]) == set(Manifest.__struct_fields__) for entry in found)
    assert next(entry["asks"] for entry in found if entry["name"] == "serve_page") == ["tor publish"]
    assert function("list").stdout.splitlines()[0].startswith("add ")


def test_show(function: Bento) -> None:
    assert function("show", "echo").stdout == resources.read_text("functions", "echo.py")
    told = json.loads(function("show", "serve_page", "--json").stdout)
    assert (told["manifest"]["tor"], told["asks"]) == (["publish"], ["tor publish"])
    assert told["doc"].startswith(told["line"])
    assert function("show", "nothing").returncode == 3


@pytest.mark.parametrize("entry", catalogue.shipped(), ids=lambda entry: entry.name)
def test_what_ships_passes_the_check(image, entry) -> None:
    if entry.manifest.image == image.name:
        held = ImageFacts(images.package_names(image), partial(images.can_import, image))
        text = resources.read_text("functions", f"{entry.name}.py")
        found = checking.check(entry.name, text, Surroundings(lambda name: held)).findings
        # A note is no fault: `browser` starts a program in the image that it renders with.
        assert [finding for finding in found if finding.grade != "note"] == []


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_tells_every_finding_with_its_line(function: Bento, image, tmp_path: Path) -> None:
    text = "import numpy\nimport json, psutil, winreg\n\ndef f():\n    api.pda(1)\n"
    done = function("check", write(tmp_path, text))
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        f"f.py:{n}: error: imports {name}, which the image 'python' lacks" for n, name in ((1, "numpy"), (2, "winreg"))
    ]
    assert lines[2].startswith("f.py:5: error: api has no 'pda'")
    assert "Traceback" not in done.stderr


def test_check_against_a_policy(function: Bento, image, tmp_path: Path) -> None:
    write(tmp_path, "store_bytes = 1000\n", "policy.toml")
    done = function("check", write(tmp_path, ASKS, "asks.py"), "--policy", "policy.toml")
    assert (done.returncode, done.stdout.count("\n")) == (3, 1)
    assert "asks.py:5: error: does not fit the policy: it asks for egress 'exit'; this box gives none" in done.stdout
    write(tmp_path, "[policy]\nstore_bytes = 1000\negress = ['exit']\n", "box.toml")
    assert function("check", "asks.py", "--policy", "box.toml").returncode == 0
    assert function("check", "asks.py", "--policy", "none.toml").returncode == 3
    assert function("check", "asks.py", "--policy", "box.toml", "--box", "unix:/x").returncode == 2


def test_check_says_what_a_box_at_its_defaults_would_not_take(function: Bento, image, tmp_path: Path) -> None:
    """Unless it was held against a box's policy, which tells more. It is no fault of the function's."""
    words = "note: a box at its defaults would refuse it: it asks for 4096 MiB of memory; this box gives 128 MiB"
    file = write(tmp_path, "# /// script\n# [tool.bento]\n# memory = 4096\n# ///\ndef f(): 1\n")
    done = function("check", file)
    assert (done.returncode, done.stdout) == (0, "") and words in done.stderr
    write(tmp_path, "limits.memory_bytes = 8589934592\n", "policy.toml")
    done = function("check", file, "--policy", "policy.toml")
    assert (done.returncode, "refuse" in done.stderr) == (0, False), done.stderr


@pytest.mark.sandbox
def test_check_against_a_box(function: Bento, box, tmp_path: Path) -> None:
    assert function("check", "hello", "--box", box.address).returncode == 0
    done = function("check", "serve_page", "--box", box.address)
    assert (done.returncode, "asks for the Tor routines publish" in done.stdout) == (3, True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"#" * (10 << 20), b"def f(): '\0'", b"(" * 500_000, b"# /// script\n" * 8000]
)
def test_check_of_a_hostile_file(function: Bento, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f.py").write_bytes(data)
    done = function("check", "f.py")
    assert done.returncode == 3
    assert len(done.stdout + done.stderr) < 500


def test_check_takes_what_editors_write(function: Bento, image, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_bytes(
        b"\xef\xbb\xbf# /// script\r\n# [tool.bento]\r\n# memory = 5\r\n# ///\r\ndef f():\r\n  1\r\n"
    )
    assert json.loads(function("check", "f.py", "--json").stdout)["manifest"]["memory"] == 5


def test_what_a_file_says_does_not_drive_a_terminal(function: Bento, tmp_path: Path) -> None:
    done = function(
        "check", write(tmp_path, "# /// script\n# [tool.bento]\n# entry = '\\u001b[31m'\n# ///\ndef f(): api.\u202ex")
    )
    assert done.returncode == 3
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout


# --- test -----------------------------------------------------------------------------------------------------------


@pytest.mark.sandbox
def test_a_test_is_the_real_thing(function: Bento, image, tmp_path: Path) -> None:
    """Its store, its limits, its arguments, its log; nothing gets out."""
    done = function("test", write(tmp_path, ASKS, "asks.py"), "--call", "asks()", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"]) == (0, "returned"), done.stderr
    assert told["messages"] == ["5", "PermissionError", "[]"]
    assert told["printed"] == "to the log\n"
    assert "a test lets nothing out" in done.stderr
    assert "would refuse it: it asks for storage" in done.stderr


@pytest.mark.sandbox
def test_what_raises_ends_with_8(function: Bento, image, tmp_path: Path) -> None:
    """How its traceback is shown docs/writing-functions.md has."""
    text = "def f():\n    api.send(b'\\xff' + api.recv())\n    api.recv()\n"
    done = function("test", write(tmp_path, text), "--input", "", "-o", "out", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["outcome"], (tmp_path / "out").read_bytes()) == (8, "raised", b"\xff")
    assert 'File "function.py", line 3, in f' in told["detail"]
    assert "error: the function raised EOFError: the user has ended the input (line 3, in f)" in done.stderr


@pytest.mark.sandbox
def test_a_policy_that_refuses_it_refuses_it(function: Bento, image, tmp_path: Path) -> None:
    write(tmp_path, "egress = ['exit', 'tor']\n", "policy.toml")
    done = function("test", write(tmp_path, ASKS, "asks.py"), "--policy", "policy.toml")
    assert (done.returncode, done.stdout) == (7, "")
    assert "asks for storage; this box keeps no data of functions" in done.stderr
    # There is no box of an operator's to ask for its policy.
    assert "hint: 'bento-tor function check asks.py --policy policy.toml' shows the line" in done.stderr


@pytest.mark.sandbox
def test_egress_exit_has_rules_of_its_own(function: Bento, image, tmp_path: Path) -> None:
    """To private networks nobody gets, nor to another port than the web's."""
    text = (
        "# /// script\n# [tool.bento]\n# egress = 'exit'\n# ///\ndef f():\n"
        "    for place in (('192.168.0.1', 80), ('10.0.0.1', 80), ('198.51.100.7', 25), ('198.51.100.7', 80)):\n"
        "        try:\n            api.connect(*place, 20)\n"
        "        except PermissionError:\n            api.send('no')\n"
        "        except OSError:\n            api.send('not there')\n"
    )
    done = function("test", write(tmp_path, text), "--egress", "exit")
    assert done.stdout.splitlines()[:3] == ["no", "no", "no"], done.stderr
    assert "from this machine's own address" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["serve_page"], 3, "asks for the Tor routines publish"),
        (["echo", "--input", "-", "--input", "a"], 2, "stands alone"),
        (["echo", "--timeout", "0"], 2, "not in the range"),
        (["nothing"], 3, "cannot read nothing"),
        (["add", "--raw", "--nope"], 2, "no option --nope"),
        (["hello", "--images", "nowhere"], 1, "there is no image 'python'"),
    ],
)
def test_what_cannot_be_tested_is_said(function: Bento, arguments: list[str], status: int, words: str) -> None:
    done = function("test", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr


class Running:
    """A test of a function that sleeps; what it makes lies in `folder`."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bento_tor.cli", "function", "test", str(file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip

    def wait_for_start(self) -> None:
        assert "starting a box" in self.process.stderr.readline()

    def wait_for_function(self) -> None:
        line = self.process.stdout.readline()
        assert line == "up\n", self.process.stderr.read()

    def end_by(self, number: int, eventually, lives) -> int:
        """Its exit status, when nothing of it is left."""
        theirs = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        assert "Traceback" not in said
        eventually(lambda: os.listdir(self.folder) == [], within_s=60.0)
        eventually(lambda: not any(map(lives, theirs)), within_s=60.0)
        return self.process.returncode


@pytest.fixture
def sleeping(tmp_path: Path, short_path: Path, image) -> Callable[[], Running]:
    write(tmp_path, "import time\n\ndef f():\n    api.send('up')\n    time.sleep(100)\n")
    return lambda: Running(short_path, tmp_path / "f.py")


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_whatever_ends_a_test_leaves_nothing(sleeping, eventually, lives, number: int, status: int) -> None:
    running = sleeping()
    running.wait_for_function()
    assert running.end_by(number, eventually, lives) == status


@pytest.mark.sandbox
def test_at_whatever_moment_it_is_ended(sleeping, eventually, lives, rounds) -> None:
    for _, chance in rounds(1, 60):
        running = sleeping()
        running.wait_for_start()
        time.sleep(chance.uniform(0, 2))
        assert running.end_by(signal.SIGINT, eventually, lives) == 130


@pytest.mark.sandbox
def test_an_ordinary_user_tests_too(ordinary_user, image, tmp_path: Path) -> None:
    images = str(image.path.parent)
    ordinary_user.add(tmp_path / write(tmp_path, ASKS, "asks.py"))
    file = str(ordinary_user.folder / "asks.py")
    done = ordinary_user.run("bento_tor.cli", "function", "test", file, "--images", images)
    assert (done.returncode, done.stdout) == (0, "5\nPermissionError\n[]\n"), done.stderr
    assert "the function printed:\n  to the log" in done.stderr
    done = ordinary_user.run("bento_tor.cli", "function", "check", file, "--images", images)
    assert done.returncode == 0, done.stderr
