"""Images: the interpreter and the packages that a function sees. Builds them, finds them again, and checks them.

`python` and `browser` ship; an operator makes his own from a file of requirements. An image is a directory with
`image.json` and `site-packages`, readable by every user id: a sandbox runs under one of its own. The interpreter is
always the system's, and so is the Chromium of `browser`. Does not start sandboxes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from bento_tor import resources
from bento_tor.config import data_dir
from bento_tor.errors import ConfigError, SandboxError
from bento_tor.policy.manifest import package_name
from bento_tor.sandbox import chromium

# Never the interpreter that runs us: it may be under a private home, which cannot be shown to another user
# id.
SYSTEM_PYTHON = Path("/usr/bin/python3")
SHIPPED = ("python", "browser")
# Whose profile is not `python`.
_PROFILES = {"browser": chromium.PROFILE}
_FORMAT = 2
_RECORD = ".dist-info"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MAX_REQUIREMENTS_BYTES = 64 * 1024
_DESCRIBE = (
    "import sys, sysconfig, os; print(os.path.realpath(sys.executable), sys.version.split()[0],"
    "sysconfig.get_path('stdlib'), sysconfig.get_config_var('MULTIARCH') or '-', sep='\\n')"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a sandbox is made of. `python`: the interpreter's file; `stdlib`, `libraries`: its directories;
    `profile`: which system calls its functions may make (seccomp.PROFILES).

    `recipe` (hex, SHA-256) changes with what it is made from, `digest` (likewise) with what it came to be: the
    versions of the interpreter and of Chromium, and every file of the packages. `browser`: the version of Chromium, or
    empty where there is none."""

    name: str
    path: Path
    python: str
    version: str
    stdlib: str
    libraries: str
    recipe: str
    profile: str = "python"
    digest: str = ""
    browser: str = ""

    @property
    def programs(self) -> tuple[str, ...]:
        """What of the machine's it sees besides the interpreter, the libraries and the packages."""
        return chromium.SHOWN if self.browser else ()

    @property
    def packages(self) -> Path:
        """The directory of installed packages."""
        return self.path / "site-packages"


def default_dir() -> Path:
    """Where images are kept when nobody says otherwise."""
    return data_dir() / "images"


def build(
    name: str,
    images_dir: Path,
    report: Callable[[str], None],
    *,
    maybe_requirements: Path | None = None,
    profile: str = "",
) -> Image:
    """Make image `name`, or find that it is up to date. `report` is told only of work that is done.

    maybe_requirements  for an image of the operator's own: a file of pip's, with every package named
    profile             the system calls that its functions may make (seccomp.PROFILES); empty: what goes with the name

    Raises ConfigError for an unknown name, SandboxError where the system's Python, Chromium or pip cannot do it."""
    requirements = _read_requirements(name, maybe_requirements)
    wanted = _describe(name, images_dir / name, requirements, profile or _PROFILES.get(name, "python"))
    found = _maybe_load(images_dir / name)
    if found is not None and found.recipe == wanted.recipe:
        return found
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
    return load(images_dir, name)


def load(images_dir: Path, name: str) -> Image:
    """The image `name`. Raises SandboxError where it has not been built, or with another Chromium than is there now."""
    image = _maybe_load(images_dir / name)
    if image is None:
        raise SandboxError(f"there is no image {name!r} in {images_dir}", hint=_again(name))
    if image.browser and (now := chromium.version()) != image.browser:
        raise SandboxError(f"Chromium is {now} now, the image {name} was made with {image.browser}", hint=_again(name))
    return image


def check(image: Image) -> None:
    """See that its files are those that it was built with, and its interpreter the machine's of today.

    Raises SandboxError where they are not."""
    if not Path(image.python).is_file():
        raise SandboxError(f"{image.python}, the interpreter of {image.name}, is gone", hint=_again(image.name))
    if (found := _digest(image, image.packages)) != image.digest:
        raise SandboxError(
            f"the files of the image {image.name} are not those that it was built with ({found[:12]}, not"
            f" {image.digest[:12]})",
            hint=f"find out who changed them; remove {image.path}, then {_again(image.name)}",
        )


def built(images_dir: Path) -> list[Image]:
    """All images in `images_dir`, by name."""
    paths = sorted(images_dir.iterdir()) if images_dir.is_dir() else []
    found = (_maybe_load(path) for path in paths if not path.name.startswith("."))
    return [image for image in found if image is not None]


def package_names(image: Image) -> tuple[str, ...]:
    """The packages in it, as PEP 503 spells their names: pip left a folder NAME-VERSION.dist-info of each."""
    records = [path.name.removesuffix(_RECORD) for path in image.packages.glob(f"*{_RECORD}")]
    return tuple(sorted(package_name(record.rpartition("-")[0]) for record in records))


def can_import(image: Image, module: str) -> bool:
    """Whether a function finds a module of this name (without dots) there. Looked up, never imported."""
    if module in sys.builtin_module_names or module == "__future__":
        return True
    places = [image.stdlib, str(Path(image.stdlib) / "lib-dynload"), str(image.packages)]
    return PathFinder.find_spec(module, places) is not None


def _again(name: str) -> str:
    return f"make it with 'bento-tor image build {name}'"


def _read_requirements(name: str, maybe_file: Path | None) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for an image", hint="letters, digits, '.', '-' and '_'")
    if maybe_file is None:
        if name not in SHIPPED:
            raise ConfigError(
                f"there is no image {name!r}",
                hint=f"known images: {', '.join(SHIPPED)}; your own is made with --requirements FILE",
            )
        # Functions find the same packages in every image that ships.
        return resources.read_text("sandbox", "requirements-python.txt")
    if name in SHIPPED:
        raise ConfigError(f"the image {name!r} ships with its packages", hint="give yours another name")
    try:
        with maybe_file.open("rb") as file:
            text = file.read(_MAX_REQUIREMENTS_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "it is not UTF-8"
        raise ConfigError(f"{maybe_file} cannot be read: {reason}", hint="one package on each line: name==1.2") from why
    if len(text) > _MAX_REQUIREMENTS_BYTES:
        raise ConfigError(f"{maybe_file} is too long for a file of requirements")
    return text


def _describe(name: str, path: Path, requirements: str, profile: str) -> Image:
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
    browser = chromium.version() if profile == chromium.PROFILE else ""
    parts = (str(_FORMAT), python, version, profile, requirements)
    seed = "\0".join((*parts, browser, chromium.FONTS_CONF) if browser else parts)
    recipe = hashlib.sha256(seed.encode()).hexdigest()
    return Image(name, path, python, version, stdlib, libraries, recipe, profile, browser=browser)


def _digest(image: Image, packages: Path) -> str:
    """Of names and contents; compiled files follow from the others, and pip writes the time into its own records."""
    browser = f" {image.browser}" if image.browser else ""
    total = hashlib.sha256(f"{_FORMAT} {image.version} {image.profile}{browser}\0".encode())
    for path in sorted(packages.rglob("*")):
        if path.suffix != ".pyc" and path.is_file():
            total.update(f"{path.relative_to(packages)}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


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
    if image.browser:
        (packages / chromium.FONTS_FILE).write_text(chromium.FONTS_CONF, encoding="utf-8")
    _run([image.python, "-I", "-m", "compileall", "-q", str(packages)], "the packages cannot be compiled")
    facts = {key: value for key, value in asdict(image).items() if key != "path"}
    facts["digest"] = _digest(image, packages)
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
        other = _maybe_load(image.path)
        if other is None or other.recipe != image.recipe:
            raise
    shutil.rmtree(old, ignore_errors=True)
