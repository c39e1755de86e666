"""The policy as an operator writes it: every mistake names its line, every setting is in the file that init writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bento_tor.config import maybe_line_of
from bento_tor.errors import ConfigError
from bento_tor.policy.document import FOUND, Policy
from bento_tor.policy.limits import Limits
from bento_tor.policy.template import render
from bento_tor.server.settings import BoxConfig, read_config, read_policy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("sessions = 4\ncolour = 1\n", 2, "there is no setting 'colour'"),
        ("sessions = 'many'", 1, "sessions: expected `int`, got `str`"),
        ("# a\n\nsessions = 0", 3, "sessions: expected `int` >= 1"),
        ("terms = '''\nsessions = 0\n'''\n\n[limits]\nwall_s = 0\n", 6, "limits.wall_s: must be at least 1"),
        ("[limits]\npids = 1.5", 2, "limits.pids"),
        ("[limits]\nspeed = 3", 2, "there is no setting 'limits.speed'"),
        ("[colours]\na = 1", 1, "there is no setting 'colours'"),
        ("images = [\n  'python',\n  3,\n]", 1, "images"),
        ("images = []", 1, "images"),
        ("egress = ['exit', 'all']", 1, "egress"),
        ("a = 1\na = 2", 2, "line 2"),
        ("functions = 3\nsessions = ", 2, "line 2"),
        ("egress = ['exit']\negress_rules = ['permit *:25']", 2, "egress_rules: an egress line cannot be used"),
        ("terms = '" + "x" * 5000 + "'", 1, "terms"),
        ("host_stats = 'all'", 1, "host_stats"),
    ],
)
def test_a_mistake_names_its_line_and_its_key(path: Path, text: str, line: int, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_policy(path)
    assert f"line {line}" in caught.value.message and words in caught.value.message, caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", [b"\xff", b"a = " + b"[" * 20_000, b"#" * 70_000, b"sessions = 1" + b"0" * 5000])
def test_what_is_no_toml_is_refused_in_words(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        read_policy(path)


@pytest.mark.parametrize("name", FOUND)
def test_what_the_box_finds_out_is_not_for_the_operator_to_say(path: Path, name: str) -> None:
    image = f"[found.python]\ndigest = '{'0' * 64}'\nprofile = 'python'\npackages = []"
    texts = {"found": image, "enforcement": "enforcement = 'rlimits-only'", "address": f"address = '{'a' * 56}.onion'"}
    path.write_text(texts[name])
    with pytest.raises(ConfigError, match="not for the operator"):
        read_policy(path)


def test_the_file_that_init_writes_is_the_default_and_so_is_each_of_its_lines(path: Path) -> None:
    path.write_text(render())
    assert read_policy(path) == Policy()
    path.write_text(re.sub(r"^#([a-z_]+ = )", r"\1", render(), flags=re.MULTILINE))
    assert read_policy(path) == Policy()
    written = tomllib.loads(path.read_text())
    assert set(written) == set(Policy.__struct_fields__) - set(FOUND)
    assert set(written["limits"]) == set(Limits.__struct_fields__)
    assert not re.search(r"^# $", render(), re.MULTILINE), "a setting without its meaning"


def test_it_is_read_from_a_file_of_its_own_or_from_the_settings_of_a_box(path: Path, tmp_path: Path) -> None:
    path.write_text("sessions = 7")
    settings = tmp_path / "box.toml"
    settings.write_text("port = 81\n[policy]\nsessions = 7")
    assert read_policy(settings) == read_policy(path) == Policy(sessions=7)
    settings.write_text("policy_file = 'policy.toml'")
    assert read_config(settings).policy == Policy(sessions=7)
    settings.write_text("policy_file = 'policy.toml'\n[policy]\nsessions = 8")
    with pytest.raises(ConfigError, match="both"):
        read_config(settings)


def test_a_key_is_found_where_its_statement_begins() -> None:
    text = "a = 1\nb = [\n 1,\n]\n[t]\n\n c.d = 3 # c\n"
    assert [maybe_line_of(text, keys) for keys in (["a"], ["b"], ["t"], ["t", "c", "d"], ["x"])] == [1, 2, 5, 7, None]


def test_every_setting_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    names = [f"policy.{name}" for name in Policy.__struct_fields__ if name not in (*FOUND, "limits")]
    names += [f"policy.limits.{name}" for name in Limits.__struct_fields__]
    names += [name for name in BoxConfig.__struct_fields__ if name != "policy"]
    assert [name for name in names if f"`{name}`" not in page] == []
