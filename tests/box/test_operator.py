"""What the operator's word does to a box, running or stopped: quotas, take-down, the policy that clients see."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from bento_tor.client import connect, parse
from bento_tor.client.route import UnixTransport, parse_address
from bento_tor.client.source import make_call
from bento_tor.controller.onion import onion_address
from bento_tor.errors import ConfigError, Refused, RemoteProtocolError
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m
from bento_tor.server import operator

pytestmark = pytest.mark.sandbox

ONCE = parse("f", "def f(): return 'x'")
FOR_EVER = parse("f", "def f():\n    while True: api.recv()")
PUT_AND_WAIT = """
def f():
    api.store.put('name', b'for the disk')
    api.send(b'kept')
    api.recv()
"""
# What is no frame, on the driver's own socket.
BROKEN_FRAMES = """
def f():
    api._wire.write(0xEE, b'nonsense')
    api.recv()
"""
QUOTAS = """
[policy]
sessions = 6
sessions_per_connection = 2
functions_per_connection = 3
output_bytes = 100000
"""


def test_each_connection_has_its_quota(new_box) -> None:
    running = new_box(config=QUOTAS)
    with running.connect() as greedy, running.connect() as other:
        functions = [greedy.upload(FOR_EVER) for _ in range(3)]
        with pytest.raises(Refused, match="keeps 3 functions of one connection") as caught:
            greedy.upload(FOR_EVER)
        assert caught.value.code == m.Code.FULL
        sessions = [functions[0].start() for _ in range(2)]
        for session in sessions:
            session.wait_attached()
        with pytest.raises(Refused, match="runs 2 functions of one connection"):
            functions[0].start().wait_attached()
        assert list(other.run(ONCE)) == [b"x"]
        functions[1].shutdown()
        greedy.upload(ONCE)
        sessions[0].end()
        assert sessions[0].wait().word == "killed:user"
        functions[0].start().wait_attached()


def test_output_has_its_measure(new_box) -> None:
    running = new_box(config=QUOTAS)
    with running.connect() as there:
        session = there.run(parse("f", "def f():\n    while True: api.send(bytes(50_000))"))
        assert session.wait().word == "killed:output"
        assert list(there.run(parse("f", "def f(): return bytes(90_000)"))) == [bytes(90_000)]


def test_a_function_is_taken_down_by_its_public_id_while_it_runs(new_box, bento) -> None:
    running = new_box()
    with running.connect() as there:
        kept, bad = there.upload(ONCE), there.upload(FOR_EVER)
        assert len(bad.public_id) == 16 and bad.public_id != kept.public_id
        session = bad.start()
        session.wait_attached()
        done = bento("takedown", bad.public_id.upper(), "--state", str(running.state))
        assert (done.returncode, done.stdout) == (0, f"{bad.public_id} is erased\n"), done.stderr
        assert session.wait().word == "killed:operator"
        with pytest.raises(Refused, match="opens nothing"):
            bad.start().wait()
        assert list(kept.start()) == [b"x"]
    again = bento("takedown", bad.public_id, "--state", str(running.state), "--json")
    assert again.returncode == 3 and "no function with the public id" in json.loads(again.stdout)["error"]["message"]


def test_a_function_of_a_stopped_box_is_taken_down_too(new_box, bento) -> None:
    first = new_box()
    with first.connect() as there:
        kept, bad = there.upload(ONCE), there.upload(ONCE)
    assert first.stop() == 0
    assert bento("takedown", "a" * 16, "--state", str(first.state)).returncode == 3
    assert bento("takedown", bad.public_id, "--state", str(first.state), "--json").returncode == 0
    second = new_box()
    with second.connect() as there:
        assert list(there.function(kept.invocation).start(make_call("f"))) == [b"x"]
        with pytest.raises(Refused):
            there.function(bad.invocation).start(make_call("f")).wait()


def test_orders_come_from_who_runs_serve_and_nonsense_is_answered_in_words(box) -> None:
    path = box.state / "operator.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="knows no order 'dance'"):
        operator.maybe_ask(path, "dance")
    with pytest.raises(ConfigError, match="wants the public id"):
        operator.maybe_ask(path, "takedown")
    for nonsense in (b"\xff\xff\n", b"x" * 100_000, b"\n", b""):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            try:
                raw.sendall(nonsense)
                raw.shutdown(socket.SHUT_WR)
            except OSError:
                pass
    with box.connect() as there:
        assert list(there.run(ONCE)) == [b"x"]
    assert operator.maybe_ask(path.with_name("none"), "takedown") is None


def test_the_policy_that_clients_see_tells_what_the_machine_has(box, bento) -> None:
    with box.connect() as there:
        policy = there.policy()
    assert "requests" in policy.found["python"].packages and policy.enforcement in ("cgroups", "rlimits-only")
    shown = json.loads(bento("policy", "show", "--state", str(box.state), "--json").stdout)
    assert msgspec.convert(shown, Policy) == policy
    assert "sessions_per_connection" in bento("policy", "show", "--state", str(box.state)).stdout


def test_the_policy_is_signed_by_the_address_and_by_no_other(box) -> None:
    # The way is direct; the address is the one that the box has.
    way = UnixTransport(parse_address(box.address), timeout_s=30)
    with connect(box.told["address"], transport=way) as there:
        there.policy()
        assert there.policy_signed is True and len(there.policy_digest) == 32
    wrong = pytest.raises(RemoteProtocolError, match="not signed by that address")
    with connect(onion_address(bytes(32)), transport=way) as there, wrong:
        there.policy()
    with box.connect() as there:
        there.policy()
        assert there.policy_signed is None, "no address, nothing to check against"


def test_a_signature_that_is_left_out_is_refused_by_who_has_seen_one(box, bento, tmp_path: Path) -> None:
    """Here the way has no address, so nothing is signed; for the keyring this box was, once."""
    for known in ({"signed": [box.address]}, {"pins": {box.address: "a" * 56 + ".onion"}}):
        (tmp_path / "keyring.json").write_text(json.dumps(known))
        done = bento("client", "policy", "--box", box.address)
        assert done.returncode == 6 and "was signed, and is not any more" in done.stderr
    (tmp_path / "keyring.json").unlink()
    told = json.loads(bento("client", "policy", "--box", box.address, "--json").stdout)
    assert told["signed"] is None and len(told["digest"]) == 64


def test_serving_without_cgroups_is_told_to_clients(new_box) -> None:
    running = new_box("--rlimits-only")
    with running.connect() as there:
        # The setting alone changes nothing: it is what holds that is told.
        assert there.policy().enforcement == ("cgroups" if "memory" in running.told["limits"] else "rlimits-only")


def test_init_writes_what_check_accepts_and_serve_takes(tmp_path: Path, bento) -> None:
    assert bento("policy", "init").returncode == 0
    again = bento("policy", "init")
    assert again.returncode == 3 and "there already" in again.stderr
    assert bento("policy", "check", "policy.toml").stdout == "policy.toml can be used\n"
    assert json.loads(bento("policy", "check", "policy.toml", "--json").stdout)["sessions"] == 16
    (tmp_path / "policy.toml").write_text("sessions = 3\nspeed = 4\n")
    for command in (("policy", "check", "policy.toml"), ("serve", "--policy", "policy.toml", "--state", "s")):
        done = bento(*command)
        assert done.returncode == 3 and "line 2: there is no setting 'speed'" in done.stderr


def told(bento, box, *words: str) -> dict:
    """What a command says with --json."""
    done = bento(*words, "--state", str(box.state), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def on_disk(box) -> bytes:
    return b"".join(path.read_bytes() for path in (box.state / "box").iterdir() if path.is_file())


def rows_on_disk(box) -> list[bytes]:
    """Everything that the database holds of functions, of what they keep, and of sessions."""
    with closing(sqlite3.connect(f"file:{box.state}/box/box.db?mode=ro", uri=True)) as db:
        queries = (
            "SELECT key_slot FROM functions", "SELECT body FROM functions", "SELECT shutdown_hash FROM functions",
            "SELECT session_hash FROM sessions", "SELECT name FROM blobs", "SELECT body FROM pieces",
        )  # fmt: skip
        return [bytes(row[0]) for query in queries for row in db.execute(query)]


def test_a_paused_box_takes_no_new_work_and_goes_on_with_the_rest(new_box, bento) -> None:
    box = new_box()
    with box.connect() as there:
        function, other = there.upload(FOR_EVER), there.upload(ONCE)
        session = function.start()
        session.wait_attached()
        state = told(bento, box, "pause")
        assert (state["paused"], state["running"]) == (True, 1)
        for attempt in (lambda: there.upload(parse("f", "def f(): return 1")), lambda: other.start().wait()):
            with pytest.raises(Refused, match="takes no new work now") as caught:
                attempt()
            assert caught.value.code == m.Code.UNAVAILABLE
        # What is known is confirmed: a flight that tor brings twice.
        assert (
            there.upload(ONCE, invocation=other.invocation, shutdown=other.shutdown_token).public_id == other.public_id
        )
        session.detach()
        with box.connect() as later:
            again = later.attach(session.token)
            again.end()
            assert again.wait().word == "killed:user"
        function.shutdown()
        assert told(bento, box, "resume")["paused"] is False
        assert list(other.start()) == [b"x"]


def test_a_pause_does_not_outlive_the_box(new_box, bento) -> None:
    first = new_box()
    told(bento, first, "pause")
    assert first.stop() == 0
    with new_box().connect() as there:
        assert list(there.run(ONCE)) == [b"x"]


def test_a_drained_box_waits_for_sessions_and_for_readers(new_box, bento, eventually) -> None:
    running = new_box()
    with running.connect() as there:
        ends, unread = there.upload(FOR_EVER).start(), there.run(ONCE)
        ends.wait_attached(), unread.wait_attached()
        unread.detach()
        state = told(bento, running, "drain", "--no-wait")
        assert state["draining"] and state["paused"] and not state["ended"]
        eventually(lambda: operator.maybe_ask(running.state / "operator.sock", "state")["waiting"] == 1)
        assert running.process.poll() is None
        ends.end()
        assert ends.wait().word == "killed:user"
        eventually(lambda: operator.maybe_ask(running.state / "operator.sock", "state")["running"] == 0)
        with running.connect() as later:
            assert list(later.attach(unread.token)) == [b"x"]
    assert running.process.wait(30) == 0
    assert "ended by itself" not in running.words()
    assert bento("drain", "--state", str(running.state)).returncode == 3, "there is no box"


def test_drain_waits_says_how_many_are_left_and_can_be_called_off(new_box, bento) -> None:
    running = new_box()
    with running.connect() as there:
        session = there.run(FOR_EVER)
        session.wait_attached()
        command = [sys.executable, "-m", "bento_tor.cli", "drain", "--state", str(running.state)]
        for call_off in (True, False):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as draining:
                assert draining.stderr.readline() == "1 left: 1 session running, 0 with output for their readers\n"
                if call_off:
                    told(bento, running, "resume")
                    assert draining.wait(30) == 1 and "called the drain off" in draining.stderr.read()
                    continue
                session.end()
                session.wait()
                assert draining.wait(60) == 0 and draining.stdout.read() == "the box has ended\n"
    assert running.process.wait(30) == 0


def test_panic_kills_erases_and_ends(new_box, bento) -> None:
    running = new_box(config="[policy]\nstore_bytes = 100000\n")
    keeper = parse("f", '# /// script\n# [tool.bento]\n# entry = "f"\n# store = true\n# ///\n' + PUT_AND_WAIT)
    with running.connect() as there:
        functions = [there.upload(keeper), there.upload(FOR_EVER), there.upload(ONCE)]
        sessions = [functions[0].start(), functions[1].start()]
        assert sessions[0].maybe_receive() == b"kept"
        sessions[1].wait_attached()
        assert list(functions[2].start()) == [b"x"]
        sealed = rows_on_disk(running)
        assert len(sealed) >= 6 and all(row in on_disk(running) for row in sealed)
        asked = bento("panic", "--state", str(running.state), stdin="n\n")
        assert asked.returncode != 0 and running.process.poll() is None
        assert told(bento, running, "panic", "--yes") == {"killed": 2, "erased": 3}
        for session in sessions:
            assert session.wait().word == "killed:operator"
    assert running.process.wait(30) == 0
    assert "ended by itself" not in running.words()
    left = on_disk(running)
    assert not [row for row in sealed if row in left]
    assert not rows_on_disk(running)
    with new_box().connect() as there:
        with pytest.raises(Refused, match="opens nothing"):
            there.function(functions[2].invocation).start(make_call("f")).wait()
        assert list(there.run(ONCE)) == [b"x"]


def test_panic_erases_what_a_killed_box_has_left(new_box, bento) -> None:
    first = new_box()
    with first.connect() as there:
        there.upload(ONCE), there.run(FOR_EVER).wait_attached()
        sealed = rows_on_disk(first)
        first.kill()
    assert len(sealed) >= 4
    assert told(bento, first, "panic", "--yes") == {"killed": 0, "erased": 2}
    left = on_disk(first)
    assert not [row for row in sealed if row in left]
    nowhere = bento("panic", "--yes", "--state", str(first.state / "none"))
    assert nowhere.returncode == 3 and "no box's state folder" in nowhere.stderr


def test_the_audit_tells_starts_ends_refusals_and_limits_and_nothing_else(new_box, bento) -> None:
    running = new_box(config="audit = true\n" + QUOTAS)
    secret = "not-for-the-operator"
    with running.connect() as there:
        function = there.upload(parse("f", f"def f(x): return x  # {secret}"))
        assert list(function.start(make_call("f", secret))) == [secret.encode()]
        with pytest.raises(Refused):
            there.function(bytes(32)).start(make_call("f")).wait()
        assert there.run(parse("f", "def f():\n    while True: api.send(bytes(50_000))")).wait().word == "killed:output"
    heard = told(bento, running, "audit")
    assert heard["enabled"] and heard["hours"] == []
    noted = [f"{event['kind']} {event['word']}" for event in heard["events"]]
    noted = ["start" if each.startswith("start ") else each for each in noted]
    assert [each for each in noted if each != "refusal policy"] == [
        "start", "end returned", "refusal token", "start", "end killed:output", "limit output",
    ]  # fmt: skip
    assert [event["number"] for event in heard["events"]] == list(range(1, len(noted) + 1))
    for hidden in (secret, function.public_id, function.invocation.hex()):
        assert hidden not in json.dumps(heard)
    last = heard["events"][-1]["number"]
    assert told(bento, running, "audit", "--since", str(last - 1))["events"] == heard["events"][-1:]
    lines = bento("audit", "--state", str(running.state)).stdout.splitlines()
    assert len(lines) == len(noted) and lines[-1].split()[-2:] == ["limit", "output"]


def test_without_the_setting_single_events_are_not_told_nor_in_the_log(new_box, bento) -> None:
    running = new_box("--rlimits-only")
    broken = parse("f", BROKEN_FRAMES)
    with running.connect() as there:
        assert list(there.run(ONCE)) == [b"x"]
        assert there.run(broken).wait().word == "killed:policy"
    heard = told(bento, running, "audit")
    assert (heard["enabled"], heard["events"], heard["hours"]) == (False, [], [])
    done = bento("audit", "--state", str(running.state))
    assert done.stdout == "" and "single events are not kept" in done.stderr and "rounded" in done.stderr
    assert running.words().splitlines() == ["starting a box"], running.words()


def test_orders_want_a_box_and_are_refused_in_words(box, bento, tmp_path: Path) -> None:
    for words in (("pause",), ("resume",), ("drain",), ("audit",)):
        done = bento(*words, "--state", str(tmp_path / "none"))
        assert done.returncode == 3 and "no box runs in" in done.stderr and "hint:" in done.stderr
    path = box.state / "operator.sock"
    for line in ("pause now", "resume x", "drain all", "panic please", "state x", "blocks 203.0.113.7", "audit 1 2"):
        with pytest.raises(ConfigError, match="wants"):
            operator.maybe_ask(path, *line.split())
    for since in ("-1", "x", "1e9", "９", "1" * 100):
        with pytest.raises(ConfigError, match="wants the number"):
            operator.maybe_ask(path, "audit", since)
    state = operator.maybe_ask(path, "state")
    assert state is not None and not state["paused"] and not state["draining"]


def test_without_exit_egress_a_block_is_kept_for_later(box, bento) -> None:
    state = ("--state", str(box.state))
    done = bento("policy", "block", "203.0.113.7:80", *state)
    assert (done.returncode, done.stdout) == (0, "203.0.113.7:80 is blocked\n")
    assert "offers no exit egress" in done.stderr
    assert told(bento, box, "policy", "blocked") == {"blocked": ["203.0.113.7:80"]}
    for bad in ("example.org", "203.0.113.7:0", "accept *:*"):
        done = bento("policy", "block", bad, *state)
        assert done.returncode == 3 and "cannot be blocked" in done.stderr
    assert told(bento, box, "policy", "unblock", "203.0.113.7/32:80")["in_force"] is False
    again = bento("policy", "unblock", "203.0.113.7:80", *state)
    assert again.returncode == 3 and "is not blocked" in again.stderr
    nowhere = bento("policy", "block", "203.0.113.7", "--state", str(box.state / "none"))
    assert nowhere.returncode == 3 and "no box's state folder" in nowhere.stderr
