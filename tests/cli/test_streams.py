"""What the caller did to standard input, output and error must not become a traceback, a hang or another's bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENTO = f"{sys.executable} -m bento_tor.cli"


def shell(line: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("BENTO_", "XDG_"))}
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment | {"HOME": str(home), "BENTO": BENTO},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$BENTO client exec - <&-", 3, "this is not a ticket"),
        ("$BENTO client keys list --json >/dev/full", 1, "cannot write the output: No space left"),
        ("$BENTO client keys list --json >&-", 0, ""),
        ("$BENTO client keys list --json 2>&-", 0, ""),
        ("$BENTO client run nofile --box unix:/x --json >/dev/full", 3, "cannot read nofile"),
        ("$BENTO client run nofile --box unix:/x 2>/dev/full", 3, ""),
        ("$BENTO client keys list --json | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("$BENTO client run $'\\xff' --box unix:/x --json", 3, "cannot read"),
        ("$BENTO client upload hello --box unix:/x --name $'\\xff'", 3, "cannot be a name"),
        ("$BENTO client upload hello --box unix:/x --name @x", 3, "cannot be a name"),
        ("$BENTO client run hello --box unix:/x --timeout nan", 2, "not a number"),
        ("$BENTO client run hello --box unix:/x --timeout inf", 2, "not in the range"),
        ("$BENTO network logs -n 0", 2, "'--lines'"),
        ("$BENTO policy blocked --state /nonexistent", 3, "no box's state folder"),
        ("$BENTO completion", 2, "error: missing argument 'SHELL'. Choose from: bash, fish, zsh\n"),
    ],
)
def test_streams_and_odd_words(line: str, code: int, said: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done


def test_an_early_interrupt_has_no_traceback() -> None:
    for delay_s in (0.04, 0.08, 0.12, 0.2):
        process = subprocess.Popen(
            [*BENTO.split(), "client", "keys", "list"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"BENTO_TOR_KEYRING": "/nonexistent"},
        )
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        # Before Python has come to what is ours nothing can help.
        ours = b", in run\n" in errors
        assert not ours or b"Traceback" not in errors, errors


def test_a_demo_touches_nothing_in_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "box" / "mine"
    mine.parent.mkdir()
    mine.write_text("x")
    done = shell(f"$BENTO demo --dir {tmp_path}", tmp_path / "home")
    assert done.returncode == 3 and "is not empty" in done.stderr
    assert mine.read_text() == "x"


def test_limits_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text("policy.limits.memory_bytes = -1")
    done = shell(f"$BENTO serve --config {tmp_path}/box.toml --state {tmp_path}/s", tmp_path)
    assert done.returncode == 3 and "policy.limits.memory_bytes: must be at least 1" in done.stderr
