"""The file of what is blocked: one spelling for each destination, and nothing in it that could open anything."""

from __future__ import annotations

import os
import stat
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from bento_tor.errors import ConfigError
from bento_tor.policy.destinations import Destinations, parse_operator
from bento_tor.policy.exit_policy import parse
from bento_tor.server import blocks


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7/32", "203.0.113.7"),
        ("203.0.113.7/24", "203.0.113.0/24"),
        ("203.0.113.7:80", "203.0.113.7:80"),
        ("203.0.113.7:80-80", "203.0.113.7:80"),
        ("203.0.113.0/24:1-65535", "203.0.113.0/24"),
        ("2606:2800::1", "[2606:2800::1]"),
        ("[2606:2800:0::1]", "[2606:2800::1]"),
        ("[2606:2800::1]/32:443", "[2606:2800::]/32:443"),
        ("*:25", "*:25"),
        ("*:25-26", "*:25-26"),
    ],
)
def test_a_destination_has_one_spelling(text: str, spelled: str) -> None:
    assert blocks.canonical(text) == spelled
    assert blocks.canonical(spelled) == spelled


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "example.org", "203.0.113.7:0", "203.0.113.7:65536", "203.0.113.7/33", "203.0.113.7:80 accept *:*",
        "203.0.113.7\naccept *:*", "accept *:*", "::ffff:203.0.113.7", "fe80::1%eth0", "127.1", "0x7f.1",
        "203.0.113.7:80-", "[203.0.113.7]", "x" * 100_000, "２０３.0.113.7",
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be blocked"):
        blocks.canonical(text)


def test_lines_are_kept_in_order_once_and_taken_away_again(tmp_path: Path) -> None:
    assert blocks.read(tmp_path) == ()
    assert blocks.add(tmp_path, "203.0.113.7") and blocks.add(tmp_path, "[2606:2800::]/32:443")
    assert not blocks.add(tmp_path, "203.0.113.7")
    assert blocks.read(tmp_path) == ("203.0.113.7", "[2606:2800::]/32:443")
    assert blocks.rules(tmp_path) == ("reject 203.0.113.7", "reject [2606:2800::]/32:443")
    blocks.remove(tmp_path, "203.0.113.7")
    assert blocks.read(tmp_path) == ("[2606:2800::]/32:443",)
    with pytest.raises(ConfigError, match="is not blocked"):
        blocks.remove(tmp_path, "203.0.113.7")
    (path,) = tmp_path.iterdir()
    assert path.name == "blocked" and stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["accept *:*\n", "203.0.113.7\naccept 203.0.113.7\n", "\n", "\udcff"])
def test_a_file_that_is_none_of_ours_is_not_taken_for_an_empty_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError):
        blocks.rules(tmp_path)
    with pytest.raises(ConfigError):
        blocks.add(tmp_path, "203.0.113.7")


def test_there_is_a_most(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("".join(f"203.0.{n // 256}.{n % 256}\n" for n in range(blocks.MOST)))
    with pytest.raises(ConfigError, match="are blocked already"):
        blocks.add(tmp_path, "198.51.100.1")
    # As many lines at their longest, with a long exit policy, still go to the broker in one packet.
    assert blocks.MOST * len("reject [ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]/128:10000-20000") < 64 * 1024


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    def block(part: int) -> None:
        for n in range(20):
            blocks.add(tmp_path, f"203.0.{part}.{n}")

    threads = [threading.Thread(target=block, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(blocks.read(tmp_path)) == 80


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for somebody else")
def test_what_root_writes_belongs_to_who_runs_the_box(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    blocks.add(tmp_path, "203.0.113.7")
    assert (tmp_path / "blocked").stat().st_uid == 12345


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no box's state folder"):
        blocks.add(tmp_path / "none", "203.0.113.7")


def test_a_blocked_destination_is_refused_whatever_else_is_said() -> None:
    lines = ("reject 93.184.216.34:80", "accept 93.184.216.34")
    rules = Destinations(parse("accept *:*"), parse_operator(lines))
    there = ip_address("93.184.216.34")
    assert rules.blocks(there, 80) and not rules.accepts(there, 80)
    assert rules.blocks(ip_address("::ffff:93.184.216.34"), 80)
    assert not rules.blocks(there, 443) and rules.accepts(there, 443)
    assert rules.blocks(ip_address("127.0.0.1"), 443), "the never-list, too"
    # Unknown is not blocked: running connections have their grace.
    unknown = Destinations(None, parse_operator(lines))
    assert unknown.blocks(there, 80) and not unknown.blocks(there, 443) and not unknown.accepts(there, 443)
