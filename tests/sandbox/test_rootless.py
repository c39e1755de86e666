"""The same jail for an ordinary user: no user ids to give away, perhaps no cgroups."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(image, browser_image, ordinary_user):
    """What rootless.py tells."""
    ordinary_user.add(HERE / "runner.py", HERE / "rootless.py")
    answer = ordinary_user.run("rootless", str(image.path.parent))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_it_is_not_root(told):
    assert told["uid"] != 0
    assert sys.version_info >= (3, 11)


ENDS = [
    ("returns", "returned", ""),
    ("raises", "raised", "ValueError: no"),
    ("exits", "exited:3", ""),
    ("crashes", "crashed:SIGABRT", ""),
    ("passwd", "raised", "No such file or directory"),
    ("root", "raised", "Read-only file system"),
    ("network", "raised", "Network is unreachable"),
    ("forks", "raised", "BlockingIOError"),
]


@pytest.mark.parametrize(("name", "word", "detail"), ENDS)
def test_a_function_of_an_ordinary_users_box(told, name, word, detail):
    assert told[name][0] == word, told[name]
    assert detail in told[name][1]


def test_memory_is_limited_with_or_without_cgroups(told):
    assert told["memory"][0] == ("killed:memory" if "memory" in told["effective"] else "raised"), told["memory"]


def test_values_come_back(told):
    assert told["returns"][2] == ["17"]
    assert told["user"][2] == ["1000"]


def test_forbidden_user_namespaces_are_named(told):
    assert "bubblewrap cannot make a sandbox" in told["forbidden"]
    assert "namespace" in told["forbidden"].partition("|")[0]
    assert "let ordinary users make user namespaces" in told["forbidden"]


def test_chromium_wants_a_cgroup_and_says_so(told):
    wanted = "" if "memory" in told["effective"] else "the image browser needs a cgroup that limits memory"
    assert told["browser"].startswith(wanted) and bool(told["browser"]) == bool(wanted)


def test_in_the_image_browser_there_are_processes_in_proc_and_no_more(told):
    assert told["proc"] == "(['self', 'thread-self'], [])"
