"""What the operator's word does to a box, running or stopped: quotas, take-down, the policy that clients see."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from bento_tor.client import parse
from bento_tor.client.route import BoxAddress
from bento_tor.client.source import make_call
from bento_tor.controller.onion import onion_address
from bento_tor.errors import ConfigError, Refused, RemoteProtocolError
from bento_tor.policy.document import Policy
from bento_tor.protocol import messages as m
from bento_tor.server import operator

pytestmark = pytest.mark.sandbox

ONCE = parse("f", "def f(): return 'x'")
FOR_EVER = parse("f", "def f():\n    while True: api.recv()")
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
    with box.connect() as there:
        there.address = BoxAddress("onion", box.told["address"])
        there.policy()
        assert there.policy_signed is True and len(there.policy_digest) == 32
    with box.connect() as there:
        there.address = BoxAddress("onion", onion_address(bytes(32)))
        with pytest.raises(RemoteProtocolError, match="not signed by that address"):
            there.policy()
    with box.connect() as there:
        there.policy()
        assert there.policy_signed is None, "no address, nothing to check against"


def test_a_signature_that_is_left_out_is_refused_by_who_has_seen_one(box, bento, tmp_path: Path) -> None:
    """Here the way has no address, so nothing is signed; for the keyring this box was, once."""
    (tmp_path / "keyring.json").write_text(json.dumps({"signed": [box.address]}))
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
