"""`doctor` and `status` on a tor of Debian's layout that setup-relay has set up: each part of that, when it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bento_tor.controller.address import remove_from_lo
from bento_tor.controller.checks import Place, check
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.findings import Finding
from bento_tor.controller.relay import VIRTUAL_ADDRESS
from bento_tor.server import status
from bento_tor.server.settings import BoxConfig
from bento_tor.server.state import maybe_relay
from bento_tor.server.tor_check import look, needed

Findings = tuple[Finding, ...]


@pytest.fixture
def tor(new_tor: Callable[..., Any], setup_relay: Any) -> Iterator[Any]:
    """A relay with a box's part, off the wire."""
    made = new_tor()
    made.start()
    done = setup_relay(made.root, "--nickname", "x", "--orport", "auto", "--exit-port", "4444", "--yes")
    assert done.status == 0, done.stderr
    yield made
    # What a test broke may keep --undo from its work; the address on this host's lo is not to stay for that.
    remove_from_lo(VIRTUAL_ADDRESS)


def findings(tor: Any) -> Findings:
    record = maybe_relay(tor.root / "state")
    assert record is not None
    return check(Place(Endpoint.parse(record.control), record))


def faults(found: Findings, about: str) -> str:
    return "; ".join(each.words for each in found if each.about == about and each.grade == "no")


def test_what_setup_relay_did_is_found_whole_and_each_part_missed(tor: Any) -> None:
    found = findings(tor)
    for about in ("control", "include", "permissions"):
        assert not faults(found, about), faults(found, about)
    assert "the group debian-tor" in "; ".join(each.words for each in found if each.about == "control")
    assert any(each.about == "settings" and "agree" in each.words for each in found)

    written = tor.torrc.read_bytes()
    tor.torrc.write_bytes(b"\n".join(line for line in written.split(b"\n") if not line.startswith(b"%include")))
    found = findings(tor)
    assert "does not include" in faults(found, "include")
    assert any(each.about == "settings" and "differ" in each.words for each in found), "a reload would end the service"
    tor.torrc.write_bytes(written)

    dropin = tor.dropin.read_bytes()
    tor.dropin.unlink()
    assert "50-bento.conf cannot be read" in faults(findings(tor), "include")
    tor.dropin.write_bytes(dropin.replace(b"box in ", b"box in /elsewhere"))
    assert "belongs to another box" in faults(findings(tor), "include")
    tor.dropin.write_bytes(dropin)

    service = tor.data / "bento-box"
    service.chmod(0o750)
    assert "others may look into" in faults(findings(tor), "permissions")
    service.chmod(0o2700)
    assert not faults(findings(tor), "permissions")


def test_a_tor_that_is_down_is_told_with_what_its_files_say(tor: Any) -> None:
    tor.stop()
    found = findings(tor)
    assert "nothing there" in faults(found, "control")
    assert [each.grade for each in found if each.about == "include"] == ["ok"]


def test_which_tor_is_meant_is_taken_from_the_set_up(tor: Any) -> None:
    record = maybe_relay(tor.root / "state")
    assert needed(BoxConfig(), record, "", by_config=False)
    assert not needed(BoxConfig(), None, "", by_config=True)
    assert needed(BoxConfig(publish=True), None, "", by_config=True)
    assert look(BoxConfig(), record, "") == findings(tor)


def test_status_finds_the_tor_of_a_box_that_does_not_run(tor: Any) -> None:
    seen = status.look(tor.root / "state")
    (told,) = seen.tors
    assert seen.maybe_box is None and seen.needs_tor
    assert told.maybe_condition is not None and told.maybe_condition.maybe_relay is not None
    assert told.maybe_condition.maybe_relay.nickname == "x" and not told.maybe_condition.works
    done = bento("status", "--state", str(tor.root / "state"))
    assert done.returncode == 6 and "no box runs" in done.stdout and "relay     x " in done.stdout, done.stdout
    tor.stop()
    done = bento("status", "--state", str(tor.root / "state"))
    assert "down:" in done.stdout and "nothing there" in done.stdout


@pytest.mark.sandbox
def test_doctor_tells_of_tor_and_fails_where_it_is_not_as_it_must_be(tor: Any, image: Any) -> None:
    plain = ("doctor", "--images", str(image.path.parent), "--state", str(tor.root / "state"))
    done = bento(*plain, "--json")
    assert done.returncode == 1, "it is not connected to its network"
    report = json.loads(done.stdout.splitlines()[0])
    assert {"control", "version", "clock", "include"} <= {each["about"] for each in report["tor"]}
    assert "tor is not as a box needs it: " in done.stderr
    shown = bento(*plain)
    assert "ok  tor include" in shown.stdout and "no  tor bootstrap" in shown.stdout
    without = bento(*plain, "--no-tor", "--json")
    assert without.returncode == 0 and "tor" not in json.loads(without.stdout)


def bento(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bento_tor.cli", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done
