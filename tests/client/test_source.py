"""A function's source on the user's side: read and checked, never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_tor.client import source
from bento_tor.client.source import Call
from bento_tor.errors import ConfigError


def test_a_function_that_ships_is_found_by_name_with_or_without_its_ending() -> None:
    assert source.load("hello") == source.load("hello.py")


def test_a_file_in_the_way_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_text("def mine(): pass")
    assert source.load("hello").functions == ("mine",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "line 1"),
        ("x = 1 \0", "not Python"),
        ("(" * 5000, "not Python"),
        ("#" * (1024 * 1024 + 1), "larger than"),
    ],
)
def test_what_is_no_python_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        source.parse("f", text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        source.load(str(tmp_path / "f.py"))


def test_a_missing_file_names_what_ships(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        source.load(str(tmp_path / "none.py"))
    assert "hello" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("add(5, 12)", Call("add", "((5, 12), {})")),
        ("f()", Call("f", "((), {})")),
        ("f('ü', key=[1, None])", Call("f", "(('ü',), {'key': [1, None]})")),
    ],
)
def test_a_call_is_a_name_and_literals(text: str, call: Call) -> None:
    assert source.parse_call(text) == call


@pytest.mark.parametrize(
    "text", ["add", "a.b()", "f(open('x'))", "f(*[1])", "f(**{})", "(lambda: 1)()", "f(1", "", "f({[]: 1})", "f(" * 999]
)
def test_anything_else_is_refused(text: str) -> None:
    """Fault 3 of 2021: the call was evaluated as an arbitrary expression."""
    with pytest.raises(ConfigError):
        source.parse_call(text)


@pytest.mark.parametrize(
    ("typed", "value"), [("5", 5), ("-1.5", -1.5), ("abc", "abc"), ("'abc'", "abc"), ("[1,", "[1,"), ("None", None)]
)
def test_arguments_are_literals_where_they_are_else_strings(typed: str, value: object) -> None:
    assert source.literal(typed) == value


def test_the_entry_is_the_manifests_then_the_files_then_the_only_one() -> None:
    manifest = "# /// script\n# [tool.bento]\n# entry = 'b'\n# ///\n"
    assert source.entry_call(source.parse("x", manifest + "def a(): 1\ndef b(): 1"), []).name == "b"
    assert source.entry_call(source.parse("a", "def a(): 1\ndef b(): 1"), []).name == "a"
    assert source.entry_call(source.parse("x", "def only(): 1"), []).name == "only"
    with pytest.raises(ConfigError, match="does not say which"):
        source.entry_call(source.parse("x", "def a(): 1\ndef b(): 1"), [])
    with pytest.raises(ConfigError, match="defines no function"):
        source.entry_call(source.parse("x", "y = 1"), [])


def test_arguments_that_are_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="take more than"):
        source.make_call("f", "x" * 100_000)


def test_arguments_that_are_no_literals_are_refused() -> None:
    with pytest.raises(ConfigError, match="not literals"):
        source.make_call("f", object())
