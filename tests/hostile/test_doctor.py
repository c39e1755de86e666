"""`bento-tor doctor --hostile`: green only where all that is claimed holds, and every row comes out right."""

from __future__ import annotations

import json
import os

import pytest

from bento_tor.cli.doctor import _Case, _judge
from bento_tor.errors import SandboxError
from bento_tor.sandbox.hostile import ROWS

pytestmark = pytest.mark.sandbox

QUICK = [row for row in ROWS if row.quick]


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user it claims no cgroups: the test below")
def test_root_gets_a_line_for_each_row_and_a_green_answer(bento, image, tmp_path) -> None:
    config = tmp_path / "box.toml"
    config.write_text(f'images = "{image.path.parent}"\n[policy]\negress = ["exit"]\n')
    done = bento("doctor", "--hostile", "--no-tor", "--config", str(config))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines), done.stdout
    for row in QUICK:
        assert any(row.name in line for line in lines), row.id


def test_an_ordinary_users_box_that_claims_cgroups_gets_no_green_answer(ordinary_user, image) -> None:
    """One that claims none gets it, with the outcomes that rlimits alone give."""
    plain = ("doctor", "--hostile", "--json", "--images", str(image.path.parent))
    done = ordinary_user.run("bento_tor.cli", *plain, "--rlimits-only")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {case["name"] for case in told["cases"]} == {row.name for row in QUICK}
    assert not [case for case in told["cases"] if case["problems"]]
    assert not told["missing"] and not told["root"]
    if not told["layers"]["memory"]["effective"]:
        config = ordinary_user.folder / "box.toml"
        config.write_text(f'images = "{image.path.parent}"\n')
        config.chmod(0o644)
        done = ordinary_user.run("bento_tor.cli", "doctor", "--json", "--config", str(config))
        assert done.returncode == 1 and "memory" in json.loads(done.stdout.splitlines()[0])["missing"]
        assert "cannot be enforced" in done.stdout + done.stderr


def test_a_row_that_came_out_otherwise_is_no_green_answer() -> None:
    good = _Case("python", 1, "fork bomb", "returned", ("EAGAIN",), ())
    bad = _Case("python", 38, "programs", "returned", ("worked",), ("said worked, not EPERM",))
    _judge([], [good])
    with pytest.raises(SandboxError, match=r"38 \(programs\)"):
        _judge([], [good, bad])
