"""Images: the interpreter and the packages that a function sees. Builds them, and finds them again.

An image is a directory with `image.json` and `site-packages`, readable by every user id: a sandbox runs under
one of its own. The interpreter is always the system's. Does not start sandboxes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bento_tor import resources
from bento_tor.config import data_dir
from bento_tor.errors import ConfigError, SandboxError

# Never the interpreter that runs us: it may be under a private home, which cannot be shown to another user
# id.
SYSTEM_PYTHON = Path("/usr/bin/python3")
NAMES = ("python",)
_FORMAT = 1
_DESCRIBE = (
    "import sys, sysconfig, os; print(os.path.realpath(sys.executable), sys.version.split()[0],"
    "sysconfig.get_path('stdlib'), sysconfig.get_config_var('MULTIARCH') or '-', sep='\\n')"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a sandbox is made of. `python`: the interpreter's file; `stdlib`, `libraries`: its directories;
    `profile`: which system calls its functions may make (seccomp.PROFILES).

    `digest` changes when the packages or the interpreter do."""

    name: str
    path: Path
    python: str
    version: str
    stdlib: str
    libraries: str
    digest: str
    profile: str = "python"

    @property
    def packages(self) -> Path:
        """The directory of installed packages."""
        return self.path / "site-packages"


def default_dir() -> Path:
    """Where images are kept when nobody says otherwise."""
    return data_dir() / "images"


def build(name: str, images_dir: Path, report: Callable[[str], None]) -> Image:
    """Make image `name`, or find that it is up to date. `report` is told only of work that is done.

    Raises ConfigError for an unknown name, SandboxError where the system's Python or pip cannot do it."""
    if name not in NAMES:
        raise ConfigError(f"there is no image {name!r}", hint=f"known images: {', '.join(NAMES)}")
    requirements = resources.read_text("sandbox", f"requirements-{name}.txt")
    wanted = _describe(name, images_dir / name, requirements)
    if _maybe_load(images_dir / name) == wanted:
        return wanted
    report(f"building the image {name} in {images_dir}")
    try:
        images_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=images_dir) as scratch:
            _fill(Path(scratch), wanted, requirements)
            _put_in_place(Path(scratch), wanted)
    except OSError as why:
        raise SandboxError(
            f"the image {name} cannot be written: {why}", hint="choose another directory with --dir"
        ) from why
    return wanted


def load(images_dir: Path, name: str) -> Image:
    """The image `name`. Raises SandboxError where it has not been built."""
    image = _maybe_load(images_dir / name)
    if image is None:
        raise SandboxError(
            f"there is no image {name!r} in {images_dir}", hint=f"make it with 'bento-tor image build {name}'"
        )
    return image


def built(images_dir: Path) -> list[Image]:
    """All images in `images_dir`, by name."""
    paths = sorted(images_dir.iterdir()) if images_dir.is_dir() else []
    found = (_maybe_load(path) for path in paths if not path.name.startswith("."))
    return [image for image in found if image is not None]


def _describe(name: str, path: Path, requirements: str) -> Image:
    """The image as it should be, on this machine, now."""
    try:
        answer = subprocess.run(
            [SYSTEM_PYTHON, "-I", "-S", "-c", _DESCRIBE], env={}, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        raise SandboxError(f"{SYSTEM_PYTHON} does not run: {why}", hint="install the package python3") from why
    if answer.returncode != 0:
        raise SandboxError(f"{SYSTEM_PYTHON} does not run: {answer.stderr.strip()[-200:]}")
    python, version, stdlib, multiarch = answer.stdout.split()
    libraries = "/usr/lib" if multiarch == "-" else f"/usr/lib/{multiarch}"
    seed = "\0".join((str(_FORMAT), python, version, requirements))
    digest = hashlib.sha256(seed.encode()).hexdigest()
    return Image(name, path, python, version, stdlib, libraries, digest)


def _maybe_load(path: Path) -> Image | None:
    try:
        fields = json.loads((path / "image.json").read_text(encoding="utf-8"))
        image = Image(**{**fields, "path": path})
    except (OSError, ValueError, TypeError):
        return None
    return image if image.packages.is_dir() else None


def _fill(scratch: Path, image: Image, requirements: str) -> None:
    listed = scratch / "requirements.txt"
    listed.write_text(requirements, encoding="utf-8")
    packages = scratch / "site-packages"
    packages.mkdir()
    command = [
        *_find_pip(),
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    # Wheels only: building from source would run strangers' code with our rights.
    command += ["--no-deps", "--only-binary=:all:", f"--python-version={image.version}"]
    command += ["--target", str(packages), "--requirement", str(listed)]
    _run(command, f"pip cannot install the packages of the image {image.name}")
    _run([image.python, "-I", "-m", "compileall", "-q", str(packages)], "the packages cannot be compiled")
    facts = {key: value for key, value in asdict(image).items() if key != "path"}
    (scratch / "image.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for path in [scratch, *scratch.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _find_pip() -> list[str]:
    for python in (sys.executable, str(SYSTEM_PYTHON)):
        command = [python, "-I", "-m", "pip"]
        if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    raise SandboxError("no pip was found", hint="install the package python3-pip")


def _run(command: list[str], failure: str) -> None:
    answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if answer.returncode != 0:
        lines = [line for line in answer.stderr.splitlines() if line.strip()]
        raise SandboxError(f"{failure}: {lines[-1] if lines else 'no reason given'}")


def _put_in_place(scratch: Path, image: Image) -> None:
    """Swap the finished directory in. A sandbox started in between finds the old one or the new one."""
    old = scratch.parent / f"{scratch.name}.old"
    finished = scratch / "image"
    finished.mkdir(mode=0o755)
    for part in ("image.json", "site-packages"):
        (scratch / part).rename(finished / part)
    if image.path.exists():
        image.path.rename(old)
    try:
        finished.rename(image.path)
    except OSError:
        # Somebody built the same at the same time: his will do.
        if _maybe_load(image.path) != image:
            raise
    shutil.rmtree(old, ignore_errors=True)
