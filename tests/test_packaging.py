"""The wheel, in a clean environment with nothing but what it requires, runs and finds its files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bento_tor.sandbox.images import Image

ROOT = Path(__file__).parent.parent
PYTHON = "/usr/bin/python3"
SHIPPED = ("bento_tor", "cli", "functions", "torrc_templates", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

# Runs inside the clean environment. A function needs its `api`, the driver its socket; __main__ is the command.
LOOK = """
import importlib, json, pkgutil
from importlib import resources
import bento_tor
from bento_tor import resources as ours

for module in pkgutil.walk_packages(bento_tor.__path__, "bento_tor."):
    if not module.name.startswith(("bento_tor.functions.", "bento_tor.sandbox.driver", "bento_tor.cli.__main__")):
        importlib.import_module(module.name)
files = {
    package: sorted(f.name for f in resources.files(f"bento_tor.{package}").iterdir() if f.is_file())
    for package in ("torrc_templates", "functions", "sandbox")
}
for package, names in files.items():
    for name in names:
        ours.read_text(package, name)
print(json.dumps({"where": bento_tor.__file__, "functions": ours.shipped_functions(), "files": files}))
"""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """What a program prints; the test fails with its words where it does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BENTO_", "PIP_"))}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy: building leaves files beside the source."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, required: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment of the system's Python with the wheel, and after that with what it requires."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    run(PYTHON, "-m", "venv", "--without-pip", environment)
    run(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--no-deps", "--no-index",
        "--disable-pip-version-check", wheel)  # fmt: skip
    added = {path.name for path in site_packages(environment).iterdir()}
    version = importlib.metadata.version("bento-tor")
    assert added == {"bento_tor", f"bento_tor-{version}.dist-info"}
    for name in required:
        link(name, site_packages(environment))
    return environment


def site_packages(environment: Path) -> Path:
    (found,) = (environment / "lib").glob("python3.*/site-packages")
    return found


def link(name: str, site: Path) -> None:
    """Make an installed distribution visible in another environment, alone: no index is asked."""
    source = Path(sysconfig.get_path("platlib"))
    for file in importlib.metadata.files(name) or []:
        top = file.parts[0]
        if top not in {"..", "__pycache__"} and not (site / top).exists():
            (site / top).symlink_to(source / top)


def test_the_command_runs_from_anywhere(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "bento-tor"
    assert "setup-relay" in run(command, "--help", cwd=tmp_path)
    assert importlib.metadata.version("bento-tor") in run(command, "--version", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_everything_can_be_imported_and_every_file_is_found(environment: Path, tmp_path: Path) -> None:
    found = json.loads(run(environment / "bin" / "python", "-I", "-c", LOOK, cwd=tmp_path))
    assert Path(found["where"]).is_relative_to(environment)
    functions = sorted(path.stem for path in (ROOT / "functions").glob("*.py") if path.stem != "__init__")
    assert found["functions"] == functions
    for folder, package in (("torrc_templates", ROOT), ("functions", ROOT), ("sandbox", ROOT / "bento_tor")):
        assert found["files"][folder] == sorted(path.name for path in (package / folder).iterdir() if path.is_file())


@pytest.mark.sandbox
def test_the_hostile_functions_travel_with_it(environment: Path, image: Image, tmp_path: Path) -> None:
    options = ["--rlimits-only"] if os.geteuid() != 0 else []
    command = [environment / "bin" / "bento-tor", "doctor", "--hostile", "--json", "--images", image.path.parent]
    told = json.loads(run(*command, *options, cwd=tmp_path))
    assert len(told["cases"]) > 40 and not told["missing"]
