"""The units, as systemd itself judges them, and a box that runs with no more than the unit leaves it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bento_tor.client import connect, parse
from bento_tor.server.settings import DEFAULT_FIRST_UID

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "packaging" / "systemd"
SERVICE, SLICE = UNITS / "bento-tor-box.service", UNITS / "bento.slice"
PROGRAM = "opt/bento-tor/bin/bento-tor"


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A root with systemd's own units, ours where docs/operator.md puts them, and a program to start."""
    root = tmp_path / "root"
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    (root / PROGRAM).parent.mkdir(parents=True)
    (root / PROGRAM).write_text("#!/bin/sh\n")
    (root / PROGRAM).chmod(0o755)
    for folder, name in (("sysusers.d", "bento-tor.sysusers"), ("tmpfiles.d", "bento-tor.tmpfiles")):
        (root / "etc" / folder).mkdir(parents=True)
        shutil.copy(UNITS / name, root / "etc" / folder / "bento-tor.conf")
    (root / "etc/systemd/system").mkdir(parents=True)
    for unit in (SERVICE, SLICE):
        shutil.copy(unit, root / "etc/systemd/system")
    return root


def settings(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)


def test_systemd_finds_no_fault_in_the_units(system: Path) -> None:
    done = run("systemd-analyze", "verify", f"--root={system}", *(system / "etc/systemd/system").iterdir())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        (SERVICE, "[Service]\nExecStart=/nonexistent\n"),
        (SERVICE, "[Service]\nType=notifie\n"),
        (SERVICE, "[Service]\nWatchDog=1\n"),
        (SLICE, "[Slice]\nCPUWeight=0\n"),
    ],
)
def test_it_would_find_one(system: Path, unit: Path, line: str) -> None:
    place = system / "etc/systemd/system" / unit.name
    place.write_text(f"{place.read_text()}\n{line}")
    done = run("systemd-analyze", "verify", f"--root={system}", place)
    assert done.returncode != 0 or done.stderr


def test_the_users_are_those_that_the_box_takes(system: Path) -> None:
    done = run("systemd-sysusers", f"--root={system}", "bento-tor.conf")
    assert done.returncode == 0 and "not a valid" not in done.stderr, done.stderr
    lines = [line.split(":") for line in (system / "etc/passwd").read_text().splitlines()]
    users = {line[0]: int(line[2]) for line in lines}
    first = DEFAULT_FIRST_UID
    assert users == {
        "bento-box": first,
        "bento-broker": first - 1,
        "bento-gate": first - 2,
        "bento-courier": first - 3,
    }
    assert {line[-1] for line in lines} == {"/usr/sbin/nologin"}


@pytest.mark.skipif(os.geteuid() != 0, reason="the folders are root's")
def test_the_folders_are_made(system: Path) -> None:
    done = run("systemd-tmpfiles", f"--root={system}", "--create", "bento-tor.conf")
    assert (done.returncode, done.stderr) == (0, "")
    modes = {name: (system / name).stat().st_mode & 0o777 for name in ("var/lib/bento-tor", "run/bento-tor")}
    assert modes == {"var/lib/bento-tor": 0o711, "run/bento-tor": 0o755}


def test_the_slice_is_below_the_one_of_tor() -> None:
    """A unit of systemd's that sets no weight has 100 (systemd.resource-control(5)); so has tor's."""
    tor = Path("/usr/lib/systemd/system/tor@default.service").read_text()
    assert not re.search(r"^(CPUWeight|IOWeight|Slice)=", tor, re.MULTILINE)
    for key in ("CPUWeight", "IOWeight"):
        assert int(settings(SLICE, key)[0]) < 100
    assert settings(SLICE, "MemoryMax") and settings(SLICE, "TasksMax")
    assert settings(SERVICE, "Slice") == [SLICE.name]


# What the unit takes away, done by hand: /usr, /etc and /boot are read-only, homes are out of sight, /tmp is its own.
# A copy of the program is where all of that leaves it.
CONFINE = """
set -e
mount --make-rprivate /
for d in /usr /etc /boot; do mount --bind $d $d; mount -o remount,bind,ro $d; done
for d in /home /root; do mount -t tmpfs -o mode=000 none $d; done
exec setpriv --bounding-set "$1" --inh-caps=-all --no-new-privs "$2" -I -B -c "$3" "$4" serve \\
    --state "$5" --config "$6" --json
"""
START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('bento_tor.cli', None, '__main__', True)"
)
CONFIG = '[policy]\negress = ["exit"]\nstore_bytes = 100000\n'


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="the unit runs as root")
def test_a_box_runs_with_no_more_than_the_unit_leaves_it(
    ordinary_user, image, short_path: Path, eventually: Callable[..., None]
) -> None:
    text = SERVICE.read_text("utf-8")
    for line in ("NoNewPrivileges=yes", "ProtectHome=yes", "ProtectSystem=full"):
        assert f"\n{line}\n" in text
    names = " ".join(settings(SERVICE, "CapabilityBoundingSet")).split()
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])
    (short_path / "box.toml").write_text(f'images = "{image.path.parent}"\n{CONFIG}')
    argv = ["unshare", "-m", "sh", "-c", CONFINE, "sh", bounding, "/usr/bin/python3", START, str(ordinary_user.folder)]
    argv += [str(short_path / "s"), str(short_path / "box.toml")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    try:
        assert process.stdout is not None and process.stderr is not None
        assert "address" in process.stdout.readline(), process.stderr.read()
        capabilities = Path(f"/proc/{process.pid}/status").read_text()
        # (Where the tests run there may be fewer still.)
        assert int(re.search(r"^CapBnd:\s*(\w+)", capabilities, re.MULTILINE)[1], 16).bit_count() <= len(names)
        with connect(f"unix:{short_path / 's' / 'box.sock'}", timeout_s=30) as box:
            assert list(box.run(parse("f", "def f(): return 'x'"))) == [b"x"]
            session = box.run(parse("f", "def f():\n    while True: api.recv()"))
            session.wait_attached()
            session.end()
            assert session.wait().word == "killed:user"
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_the_program_of_the_unit_is_the_one_that_the_guide_installs() -> None:
    (start,) = settings(SERVICE, "ExecStart")
    assert shlex.split(start)[0] == f"/{PROGRAM}"
    guide = (ROOT / "docs" / "operator.md").read_text("utf-8")
    assert "/opt/bento-tor" in guide
    for path in UNITS.iterdir():
        assert path.name in guide
