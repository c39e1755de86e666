"""Images, the trial, the private view: what a box needs before the first function, and how it fails."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from bento_tor.cli.image import command
from bento_tor.errors import ConfigError, SandboxError
from bento_tor.policy.limits import Limits
from bento_tor.sandbox import chromium, images, spec, trial
from bento_tor.sandbox.cgroups import PREFIX, Cgroups
from bento_tor.sandbox.hierarchies import find_places
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.mounts import private_view
from bento_tor.sandbox.uids import Uids

pytestmark = pytest.mark.sandbox


def test_the_trial_passes(jail, nothing_left):
    trial.check(jail)


def test_a_jail_leaves_no_cgroups(image):
    groups = set(Path("/sys/fs/cgroup").glob(f"**/{PREFIX}*"))
    with Jail(image) as jail:
        trial.check(jail)
        assert jail.effective or os.geteuid() != 0
    assert set(Path("/sys/fs/cgroup").glob(f"**/{PREFIX}{os.getpid()}-*")) <= groups


def test_a_machine_without_bubblewrap_is_told_so(jail, monkeypatch, nothing_left):
    monkeypatch.setattr(spec, "BWRAP", "bwrap-that-is-not-there")
    with pytest.raises(SandboxError) as error:
        jail.start(Limits())
    assert error.value.message == "bubblewrap is not installed"
    assert "install the package bubblewrap" in error.value.hint


def test_an_image_that_went_away_fails_the_trial_in_words(image, nothing_left):
    gone = images.Image(**{**{f: getattr(image, f) for f in image.__slots__}, "path": Path("/nowhere")})
    with Jail(gone) as jail, pytest.raises(SandboxError, match="/nowhere/site-packages"):
        trial.check(jail)


def test_an_interpreter_that_went_away_is_named(image, nothing_left):
    gone = images.Image(**{**{f: getattr(image, f) for f in image.__slots__}, "python": "/usr/bin/python3.99"})
    with pytest.raises(SandboxError, match=r"/usr/bin/python3\.99 does not run"), Jail(gone):
        pass


def test_an_image_is_built_once_and_readable_by_all(image):
    said = []
    assert images.build("python", image.path.parent, said.append) == image
    assert said == []
    assert image.python.startswith("/usr/bin/python3.")
    for path in [image.path, *image.path.rglob("*")]:
        assert path.stat().st_mode & stat.S_IROTH, path
    assert images.load(image.path.parent, "python") == image
    assert image in images.built(image.path.parent)


def test_a_damaged_image_is_built_anew_and_leaves_nothing_beside_it():
    with tempfile.TemporaryDirectory(prefix="bento-images-") as directory:
        (Path(directory) / "python/site-packages").mkdir(parents=True)
        (Path(directory) / "python/image.json").write_text("{")
        said = []
        image = images.build("python", Path(directory), said.append)
        assert len(said) == 1
        assert (image.packages / "socks.py").is_file()
        assert os.listdir(directory) == ["python"]
        assert sorted(os.listdir(image.path)) == ["image.json", "site-packages"]


def test_the_image_browser_is_built_with_this_chromium_and_starts_it(image, browser_image, nothing_left):
    said = []
    assert images.build("browser", browser_image.path.parent, said.append) == browser_image and said == []
    assert browser_image.browser == chromium.version() and browser_image.digest != image.digest
    images.check(browser_image)
    listed = CliRunner().invoke(command, ["list", "--dir", str(browser_image.path.parent)]).stdout
    assert f"Chromium {browser_image.browser}" in listed
    with Jail(image, browser_image) as jail:
        trial.check(jail)


def test_another_chromium_is_another_image(browser_image, monkeypatch):
    monkeypatch.setattr(chromium, "version", lambda: "1.2.3-4")
    with pytest.raises(SandboxError, match=r"Chromium is 1\.2\.3-4 now, the image browser was made with") as error:
        images.load(browser_image.path.parent, "browser")
    assert error.value.hint == "make it with 'bento-tor image build browser'"
    assert images._digest(browser_image, browser_image.packages) == browser_image.digest
    other = dataclasses.replace(browser_image, browser="1.2.3-4")
    assert images._digest(other, browser_image.packages) != browser_image.digest


def test_a_machine_without_chromium_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(chromium, "_PACKAGE", "chromium-that-is-not-there")
    with pytest.raises(SandboxError, match="the image browser needs Debian's chromium-that-is-not-there") as error:
        images.build("browser", Path("/nowhere"), lambda text: None)
    assert error.value.hint == "as root: apt-get install --no-install-recommends chromium-that-is-not-there"


def test_a_chromium_that_does_not_start_fails_the_trial(browser_image, monkeypatch, nothing_left):
    monkeypatch.setattr(chromium, "SHOWN", ())
    with Jail(browser_image) as jail, pytest.raises(SandboxError, match="a function does not run in the sandbox"):
        trial.check(jail)


def test_without_a_limit_of_memory_there_is_no_chromium(image, browser_image):
    with pytest.raises(SandboxError, match="the image browser needs a cgroup that limits memory"):
        Jail(image, browser_image, cgroups=Cgroups([])).open()


def test_an_image_of_the_operators_own_is_offered_and_checked():
    with tempfile.TemporaryDirectory(prefix="bento-images-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        listed = folder / "mine.txt"
        listed.write_text("six==1.16.0\n")
        mine = images.build("mine", folder, lambda text: None, maybe_requirements=listed)
        shipped = images.build("python", folder, lambda text: None)
        assert (mine.packages / "six.py").is_file() and mine.digest != shipped.digest
        images.check(mine)
        with Jail(shipped, mine) as jail:
            trial.check(jail)
        (mine.packages / "six.py").write_text("import os")
        with pytest.raises(SandboxError, match="not those that it was built with"):
            images.check(mine)
        for name, requirements in (("python", listed), ("../x", listed), ("y", folder / "none")):
            with pytest.raises(ConfigError):
                images.build(name, folder, print, maybe_requirements=requirements)


def test_an_image_that_is_missing_or_unknown_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(SandboxError) as missing:
        images.load(tmp_path, "python")
    assert missing.value.hint == "make it with 'bento-tor image build python'"
    with pytest.raises(ConfigError, match="no image 'windows'"):
        images.build("windows", tmp_path, print)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SandboxError, match="cannot be written"):
        images.build("python", blocked / "images", print)


def test_the_image_command_is_quiet_when_there_is_nothing_to_do(image):
    runner = CliRunner()
    directory = str(image.path.parent)
    again = runner.invoke(command, ["build", "--dir", directory])
    assert (again.exit_code, again.output) == (0, "")
    facts = json.loads(runner.invoke(command, ["build", "--json", "--dir", directory]).stdout)
    assert facts["digest"] == image.digest
    assert facts in json.loads(runner.invoke(command, ["list", "--json", "--dir", directory]).stdout)["images"]
    assert "python  Python 3." in runner.invoke(command, ["list", "--dir", directory]).stdout


def test_leftovers_of_a_killed_keeper_are_swept(jail):
    if not jail.effective:
        assert os.geteuid() != 0
        return
    text = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    left = [place.path / f"{PREFIX}1-1" for place in find_places(*text)]
    for path in left:
        (path / "leaf").mkdir(parents=True)
    with_us = Cgroups.of_this_process()
    with_us.open()
    with_us.close()
    assert not any(path.exists() for path in left)


def test_a_private_view_shows_what_a_private_home_hides():
    """As root, in a process of its own: another user id reaches the directory, the host's mounts stay as they were."""
    before = Path("/proc/self/mountinfo").read_text()
    home = Path(tempfile.mkdtemp(prefix="bento-view-"))
    (home / "state").mkdir()
    (home / "state/file").write_text("here")
    try:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(write, _look(home).encode())
            except BaseException as error:
                os.write(write, repr(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        told = os.read(read, 4096).decode()
        os.close(read)
        if os.geteuid() == 0:
            assert told == "/mnt/state here Permission denied"
        else:
            assert "cannot have mounts of its own" in told
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        shutil.rmtree(home)


def _look(home: Path) -> str:
    view = private_view({"state": home / "state"})
    os.setresgid(54_321, 54_321, 54_321)
    os.setresuid(54_321, 54_321, 54_321)
    try:
        (home / "state/file").read_text()
        hidden = "readable"
    except OSError as error:
        hidden = error.strerror
    return f"{view['state']} {(view['state'] / 'file').read_text()} {hidden}"


def test_a_missing_directory_is_named_before_anything_is_mounted():
    if os.geteuid() != 0:
        return
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            private_view({"state": Path("/nowhere/at/all")})
        except SandboxError as error:
            status = 0 if "/nowhere/at/all" in error.message and not ctypes.get_errno() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_orphans_of_a_killed_keeper_are_ended_by_the_next_with_its_user_ids():
    """Killed at the wrong moment, bubblewrap's inner process waits for ever for an outer one that is dead."""
    if os.geteuid() != 0:
        return  # without root there are no user ids to tell them by
    uid = 1_880_095_001
    read, write = os.pipe()
    gate_read, gate_write = os.pipe()
    if (pid := os.fork()) == 0:
        orphan = os.fork()
        if orphan == 0:
            os.setresuid(uid, uid, uid)
            os.write(write, str(os.getpid()).encode())
            time.sleep(60)
        os.read(gate_read, 1)
        os._exit(0)
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # a jail has made us the subreaper, and a dead keeper is none
    os.write(gate_write, b"x")
    os.waitpid(pid, 0)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    orphan = psutil.Process(int(os.read(read, 20)))
    for fd in (read, write, gate_read, gate_write):
        os.close(fd)
    assert orphan.ppid() == 1
    other, same = Uids(range(uid + 1, uid + 9)), Uids(range(uid, uid + 1))
    other.open()
    assert orphan.is_running()
    same.open()
    _, alive = psutil.wait_procs([orphan], timeout=5)
    assert not alive
