"""Sessions that are left and come back to: by name, by ticket, after Ctrl-C; and what the keyring knows of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.sandbox

Bento = Callable[..., CompletedProcess[str]]
ASKS = "def asks():\n    print('printed')\n    api.send('first')\n    api.send('second ' + api.recv().decode())\n"


@pytest.fixture
def client(box, bento: Bento) -> Bento:
    def run(*arguments: str, **more: str) -> CompletedProcess[str]:
        return bento("-q", "client", *arguments, **{"BENTO_TOR_BOX": box.address, **more})

    return run


@pytest.fixture
def asks(client: Bento, tmp_path: Path) -> str:
    (tmp_path / "asks.py").write_text(ASKS)
    client("upload", "asks.py")
    return json.loads(client("exec", "asks", "--json").stdout)["ticket"]


def sessions(client: Bento, *options: str) -> dict[str, dict[str, object]]:
    rows = json.loads(client("sessions", "--json", *options).stdout)["sessions"]
    return {row["name"]: row for row in rows}


def test_a_token_from_another_machine_is_enough(client: Bento, asks: str, tmp_path: Path) -> None:
    (tmp_path / "ticket").write_text(asks)
    elsewhere = {"BENTO_TOR_KEYRING": str(tmp_path / "elsewhere.json")}
    done = client("attach", "@ticket", stdin="in\n", **elsewhere)
    assert (done.returncode, done.stdout) == (0, "first\nsecond in\n"), done.stderr
    assert client("logs", "session.1", **elsewhere).stdout == "printed\n"


def test_a_bare_token_needs_the_box(client: Bento, box, asks: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(asks.rsplit(":", 1)[1])
    assert client("attach", "@token").returncode == 3
    done = client("attach", "@token", "--box", box.address, "--no-keyring", stdin="x")
    assert done.stdout == "first\nsecond x\n"


def test_a_token_that_opens_nothing_is_not_remembered(client: Bento, box, tmp_path: Path) -> None:
    (tmp_path / "ticket").write_text(f"bento1:{box.address}:session:{'x' * 43}")
    assert client("attach", "@ticket").returncode == 7
    assert sessions(client) == {}


def test_what_came_before_another_took_over_is_in_the_json(terminals, client: Bento, asks: str, tmp_path: Path) -> None:
    shown = terminals("client", "attach", "asks", "--json", "-o", "out")
    shown.wait_for("received")
    client("detach", "asks")
    words = shown.wait_for("error: the box refused", "comes back to the session")
    assert shown.end() == 7
    assert '"left_running": true' in words
    told = client("attach", "asks", stdin="x").stdout
    assert (tmp_path / "out").read_text() + told == "firstsecond x\n" or told == "first\nsecond x\n"


def test_what_was_read_by_one_machine_is_where_the_next_goes_on(client: Bento, asks: str) -> None:
    assert client("recv", "asks").stdout == "first\n"
    assert client("attach", "-", stdin=asks + "\nx\n").stdout == "second x\n"
    assert sessions(client)["asks.1"]["state"] == "returned"


def test_sessions_tell_their_state_and_check_asks_the_box(client: Bento, asks: str) -> None:
    assert sessions(client)["asks.1"]["state"] == "running"
    assert sessions(client, "--check")["asks.1"]["state"] == "output to read"
    assert client("recv", "asks").stdout == "first\n"
    assert sessions(client, "--check")["asks.1"]["state"] == "running"
    assert client("send", "asks", "in").returncode == 0
    assert client("recv", "asks").stdout == "second in\n"
    assert sessions(client, "--check")["asks.1"]["state"] == "returned"
    assert client("logs", "asks").stdout == "printed\n"
    over = client("attach", "asks")
    assert over.returncode == 3 and "has ended (returned)" in over.stderr and "logs asks.1" in over.stderr


def test_what_a_box_has_erased_is_gone(client: Bento, asks: str, tmp_path: Path) -> None:
    keyring = (tmp_path / "keyring.json").read_text()
    assert client("shutdown", "asks").returncode == 0
    assert sessions(client) == {}
    (tmp_path / "keyring.json").write_text(keyring)
    assert sessions(client, "--check")["asks.1"]["state"] == "gone"
    done = client("attach", "asks")
    assert done.returncode == 7 and "the box refused" in done.stderr


def test_logs_of_one_that_runs(bento: Bento, asks: str) -> None:
    done = bento("client", "logs", "asks")
    assert (done.returncode, done.stdout) == (0, "") and "still runs" in done.stderr
    assert json.loads(bento("client", "logs", "asks", "--json").stdout)["state"] == "running"


def test_ctrl_c_leaves_a_run_and_attach_comes_back_and_erases(terminals, client: Bento, box, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    shown = terminals("client", "run", "asks.py", BENTO_TOR_BOX=box.address)
    shown.wait_for("first")
    shown.type("\x03")
    shown.wait_for("left running: 'bento-tor client attach asks.1' comes back to it")
    assert shown.end() == 130
    assert sessions(client)["asks.1"]["offset"] == len("first") + 1
    done = client("attach", "asks.1", stdin="again\n")
    assert (done.returncode, done.stdout) == (0, "second again\n"), done.stderr
    assert client("logs", "asks").returncode == 3  # it was stored for that run only
    assert json.loads(client("keys", "list", "--json").stdout)["functions"] == []


def test_ctrl_c_twice_ends_a_run(terminals, client: Bento, box, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    shown = terminals("client", "run", "asks.py", BENTO_TOR_BOX=box.address)
    shown.wait_for("first")
    shown.type("\x03")
    shown.wait_for("Ctrl-C again")
    shown.type("\x03")
    shown.wait_for("killed:user")
    assert shown.end() == 8
    assert json.loads(client("keys", "list", "--json").stdout) | {"boxes": 0} == {
        "functions": [],
        "sessions": [],
        "boxes": 0,
    }


def test_ctrl_c_leaves_an_attached_session(terminals, client: Bento, asks: str) -> None:
    shown = terminals("client", "attach", "asks")
    shown.wait_for("first")
    assert sessions(client)["asks.1"]["attached"]
    shown.type("\x03")
    shown.wait_for("left running: 'bento-tor client attach asks.1'")
    assert shown.end() == 130
    assert not sessions(client)["asks.1"]["attached"]
    assert client("attach", "asks", stdin="x").stdout == "second x\n"


def test_an_interrupt_without_a_terminal_leaves_it_at_once_and_says_so_in_json(
    client: Bento, box, tmp_path: Path, eventually
) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    environment = os.environ | {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json"), "BENTO_TOR_BOX": box.address}
    argv = [sys.executable, "-m", "bento_tor.cli", "client", "run", "asks.py", "--json", "-o", "out"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as process:
        eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes() == b"first")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        out, errors = process.communicate()
    told = json.loads(out)
    assert b"Traceback" not in errors
    assert (told["left_running"], told["session"]) == (True, "asks.1")
    assert told["messages"] == ["first"]
    assert client("attach", "asks.1", "-o", "out", stdin="x").returncode == 0
    assert (tmp_path / "out").read_bytes() == b"firstsecond x"


def test_a_sigterm_ends_and_erases_a_run(client: Bento, box, tmp_path: Path, eventually) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    environment = os.environ | {"BENTO_TOR_KEYRING": str(tmp_path / "keyring.json"), "BENTO_TOR_BOX": box.address}
    argv = [sys.executable, "-m", "bento_tor.cli", "client", "run", "asks.py", "-o", "out"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path
    ) as process:
        eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes() == b"first")
        process.terminate()
        # Its input stays open: `communicate` would end it, and the function with it, before the signal is heard.
        process.wait(timeout=60)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 8 and b"killed:user" in errors, errors
    assert not (tmp_path / "keyring.json").exists()


def test_with_no_keyring_a_run_that_is_left_tells_its_tickets(terminals, client: Bento, box, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    shown = terminals("client", "run", "asks.py", "--no-keyring", BENTO_TOR_BOX=box.address)
    shown.wait_for("first")
    shown.type("\x03")
    words = shown.wait_for("  session   bento1:", "  shutdown  bento1:", "client attach -")
    assert shown.end() == 130
    ticket = words.split("  session   ")[1].split()[0]
    (tmp_path / "ticket").write_text(ticket)
    refused = client("attach", "@ticket", "--no-keyring")
    assert refused.returncode == 7 and "--from" in refused.stderr
    assert "attach - --from 6'" in words
    assert client("attach", "-", "--from", "6", "--no-keyring", stdin=ticket + "\nx").stdout == "second x\n"
    assert not (tmp_path / "keyring.json").exists()


def test_detach_makes_another_let_go(terminals, client: Bento, asks: str) -> None:
    shown = terminals("client", "attach", "asks")
    shown.wait_for("first")
    told = client("detach", "asks")
    assert told.returncode == 0 and "bento-tor client attach asks.1" in told.stdout
    shown.wait_for("error: the box refused")
    assert shown.end() == 7
    assert client("attach", "asks", stdin="x").stdout == "second x\n"


def test_a_run_whose_box_has_died_is_kept_and_told_lost_later(new_box, bento: Bento, terminals, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    mortal = new_box()
    shown = terminals("client", "run", "asks.py", "--timeout", "3", BENTO_TOR_BOX=mortal.address)
    shown.wait_for("first")
    mortal.kill()
    shown.wait_for("attempt 1 to come back", "comes back to the session")
    assert shown.end() == 6
    mortal = new_box()
    done = bento("client", "attach", "asks.1")
    assert (done.returncode, done.stdout) == (8, "") and "lost" in done.stderr, done.stderr
    # What that run had stored has been erased at last.
    assert json.loads(bento("client", "keys", "list", "--json").stdout)["functions"] == []


# --- keys -----------------------------------------------------------------------------------------------------------


def test_keys_travel_sealed(client: Bento, asks: str, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("口令 correct horse\n")
    other = {"BENTO_TOR_KEYRING": str(tmp_path / "other.json")}
    told = client("keys", "export", "keys.bento", "--passphrase-file", "pass")
    assert told.returncode == 0 and "sealed" in told.stdout, told.stderr
    assert (tmp_path / "keys.bento").stat().st_mode & 0o777 == 0o600
    assert "asks" not in (tmp_path / "keys.bento").read_text()
    wrong = client("keys", "import", "keys.bento", "--passphrase-file", "-", stdin="wrong\n", **other)
    assert wrong.returncode == 3 and "passphrase is wrong" in wrong.stderr
    assert client("keys", "import", "keys.bento", "--passphrase-file", "pass", **other).returncode == 0
    assert client("attach", "asks", stdin="x\n", **other).stdout == "first\nsecond x\n"
    assert client("keys", "export", "keys.bento", "--plain").returncode == 3  # never overwrites


def test_plain_keys_and_what_is_known_already(client: Bento, asks: str) -> None:
    assert client("keys", "export", "plain", "--plain").returncode == 0
    told = json.loads(client("keys", "import", "plain", "--json").stdout)
    assert told == {"added": [], "renamed": {}, "known": ["asks", "asks.1"], "differ": []}
    assert client("keys", "export", "more").returncode == 3  # no passphrase, and nobody to ask


def test_keys_are_renamed_and_forgotten(client: Bento, box, asks: str) -> None:
    assert client("keys", "rename", "asks", "mine").returncode == 0
    assert client("keys", "rename", "asks.1", "mine").returncode == 3
    assert client("recv", "mine").stdout == "first\n"
    refused = client("keys", "forget", "mine")
    assert refused.returncode == 3 and "still at a box" in refused.stderr
    assert client("keys", "forget", "mine", "asks.1", "--yes").returncode == 0
    assert client("keys", "forget", box.address).returncode == 0
    assert json.loads(client("keys", "list", "--json").stdout) == {"functions": [], "sessions": [], "boxes": []}
    assert client("keys", "forget", "nobody").returncode == 3
    assert client("keys", "forget").returncode == 2


def test_a_passphrase_is_asked_for_twice_at_a_terminal(terminals, client: Bento, asks: str, tmp_path: Path) -> None:
    shown = terminals("client", "keys", "export", "keys")
    shown.wait_for("passphrase:")
    shown.type("secret\n")
    shown.wait_for("Repeat")
    shown.type("secret\n")
    assert shown.end() == 0
    assert "secret" not in shown.text()
    other = {"BENTO_TOR_KEYRING": str(tmp_path / "other.json")}
    done = client("keys", "import", "keys", "--passphrase-file", "-", stdin="secret\n", **other)
    assert done.returncode == 0 and "asks.1" in done.stdout


# --- progress -------------------------------------------------------------------------------------------------------


def test_what_comes_and_goes_is_counted_at_a_terminal(terminals, box, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(("x" * 99 + "\n") * 5000)
    (tmp_path / "f.py").write_text(
        "def f():\n    for n in range(40): api.send(api.recv())\n    while True:\n        try: api.recv()\n"
        "        except EOFError: return"
    )
    shown = terminals("client", "run", "f.py", "-o", "out", stdin=tmp_path / "in", BENTO_TOR_BOX=box.address)
    words = shown.wait_for("received", "sent", "/500.0 kB")
    assert shown.end() == 0
    assert "/s" in words and (tmp_path / "out").stat().st_size == 40 * 99


def test_where_there_is_no_terminal_nothing_is_counted(bento: Bento, box) -> None:
    done = bento("client", "run", "hello", "-o", "out", BENTO_TOR_BOX=box.address)
    assert done.returncode == 0 and "received" not in done.stderr


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_words_of_2021_still_lead_there(client: Bento, tmp_path: Path) -> None:
    assert "stored as hello" in client("store", "hello").stdout
    client("exec", "hello")
    assert client("open", "hello").stdout == "hello world\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "-q", "hello"], 2, "bento-tor -q client run"),
        (["run", "hello", "-q"], 2, "bento-tor -q client run"),
        (["run", "hello", "--colour"], 2, "put -- before"),
        (["exec", "hello", "--colour"], 2, "put -- before"),
        (["run", ""], 2, "FILE is empty"),
        (["run", " "], 2, "FILE is empty"),
        (["run", "."], 3, "is a folder"),
        (["upload", ""], 2, "FILE is empty"),
    ],
)
def test_what_is_meant_for_whom(client: Bento, arguments: list[str], code: int, said: str) -> None:
    done = client(*arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_dashes_reach_a_function_behind_two(client: Bento, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(*a): return repr(a)")
    assert client("run", "f.py", "--", "-q", "--colour", "-1").stdout == "('-q', '--colour', -1)\n"
    assert client("run", "f.py", "-1", "-0.5", "--", "-x").stdout == "(-1, -0.5, '-x')\n"
