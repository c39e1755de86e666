"""The manifest: read line by line, bounded, and never slower than linear."""

from __future__ import annotations

import time

import msgspec
import pytest

from bento_tor import resources
from bento_tor.errors import ConfigError
from bento_tor.policy import manifest
from bento_tor.policy.manifest import Manifest

BLOCK = "# /// script\n# [tool.bento]\n# entry = 'go'\n# memory = 64\n# ///\n"


def test_a_block_becomes_a_value() -> None:
    assert manifest.read("'''doc'''\n" + BLOCK + "def go(): pass") == Manifest(entry="go", memory=64)


def test_carriage_returns_are_accepted() -> None:
    assert manifest.read(BLOCK.replace("\n", "\r\n")).entry == "go"


def test_no_block_is_the_default() -> None:
    assert manifest.read("def f(): pass") == Manifest()


def test_a_comment_after_the_block_is_not_part_of_it() -> None:
    assert manifest.read("# /// script\n# ///\n# a comment\ndef f(): pass") == Manifest()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("# /// script\n# x", "not closed"),
        (BLOCK + "\n" + BLOCK, "more than one"),
        ("# /// script\n# [tool.bento\n# ///", "not TOML"),
        ("# /// script\n# x = " + "[" * 2000 + "\n# ///", "nested too deeply"),
        ("\n\n# /// script\n# [tool.bento]\n# memory = 64 MiB\n# ///", r"not TOML: .*\(line 5\)$"),
        ("# /// script\n# [tool.bento]\n# colour = 'red'\n# ///", "unknown key 'colour' .* there are entry, image,"),
        ("# /// script\n# [tool.bento]\n# " + "k" * 5000 + " = 1\n# ///", "unknown key 'k{79} in"),
        ("# /// script\n# [tool.bento]\n# memory = 'much'\n# ///", "memory"),
        ("# /// script\n# [tool.bento]\n# memory = -1\n# ///", "memory"),
        ("# /// script\n# [tool.bento]\n# entry = 'a.b'\n# ///", "entry"),
        ("# /// script\n# [tool.bento]\n# egress = 'all'\n# ///", "egress"),
        ("# /// script\n# x = '" + "y" * 9000 + "'\n# ///", "longer than"),
    ],
)
def test_a_bad_block_is_refused_in_words(source: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        manifest.read(source)


def test_many_opening_lines_take_no_time() -> None:
    """The PEP's own expression takes 10 s on 8,000 of them."""
    begun = time.monotonic()
    with pytest.raises(ConfigError):
        manifest.read("# /// script\n" * 80_000)
    assert time.monotonic() - begun < 5  # linear: a fraction of a second; the bound only tells it from minutes


def test_what_travels_comes_back() -> None:
    value = Manifest(entry="f", hosts=("example.org",), tor=("connect",), host="coarse")
    assert manifest.decode(manifest.encode(value)) == value


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80garbage", msgspec.msgpack.encode({"colour": 1}), b"\x91" * 5000])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        manifest.decode(data)


@pytest.mark.parametrize("name", resources.shipped_functions())
def test_each_function_that_ships_has_a_manifest_with_an_entry(name: str) -> None:
    assert manifest.read(resources.read_text("functions", f"{name}.py")).entry


DEPENDENCIES = "# /// script\n# dependencies = {}\n# [tool.bento]\n# store = true\n# ///\n"


def test_dependencies_are_read_by_their_names() -> None:
    written = '["Requests>=2", "Py_Socks[x]==1.7", "a.b ; python_version > \'3\'", "x @ https://example.org/x.whl"]'
    found = manifest.read(DEPENDENCIES.format(written))
    assert found.packages == ("requests", "py-socks", "a-b", "x") and found.store


@pytest.mark.parametrize("written", ["3", '"requests"', "[1]", '["-x"]', '["a b"]', '[""]', '["' + "a" * 99 + '"]'])
def test_dependencies_that_are_none_are_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="the function's manifest"):
        manifest.read(DEPENDENCIES.format(written))


def test_packages_come_from_the_dependencies_alone() -> None:
    with pytest.raises(ConfigError, match="names packages"):
        manifest.read("# /// script\n# [tool.bento]\n# packages = ['x']\n# ///\n")
    with pytest.raises(ConfigError, match="not TOML"):
        manifest.read("# /// script\n# x = 1" + "0" * 5000 + "\n# ///\n")
