"""What the guest has: a small Debian of files of this machine, as the archive that a Linux kernel unpacks at boot.

Owns which files, and the archive's form ("newc"; Linux, driver-api/early-userspace/buffer-format). Starts nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bento_tor.sandbox.images import Image

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
# In the guest: what pid 1 puts before Python's path.
OURS = Path("/opt/bento")
IMAGES = Path("/opt/images")
_PROGRAMS = ("/usr/bin/bwrap", "/sbin/ldconfig")
_LIBRARIES = ("libseccomp.so.2",)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS = ("proc", "sys", "dev", "tmp", "run", "mnt", "srv", "root", "etc/ssl/certs", "var/lib", "home/operator")
_PASSWD = "root:x:0:0:root:/root:/bin/sh\noperator:x:1000:1000::/home/operator:/bin/sh\n"
# Big parts of the standard library that nothing here imports.
_NEVER = re.compile(r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|pydoc_data|turtledemo|dist-packages|config-3.*)/")


def write_archive(out: BinaryIO, image: Image, modules: list[Path]) -> None:
    """The guest's root. `modules`: kernel modules to put into /modules."""
    archive = _Archive(out)
    for name in _FOLDERS:
        archive.folder(Path("/", name))
    for name, target in _LINKS.items():
        archive.link(Path("/", name), target)
    archive.text(Path("/etc/passwd"), _PASSWD)
    for module in modules:
        archive.file(module, Path("/modules", module.name))
    files = dict(_everything(image))
    for target, source in files.items():
        archive.file(source, target)
    for library in _needed(list(files.values())):
        archive.file(library, library)
    archive.end()


def _everything(image: Image) -> Iterator[tuple[Path, Path]]:
    """Guest's path -> ours."""
    python = Path(image.python)
    yield python, python
    yield Path("/usr/bin/python3"), python
    for program in _PROGRAMS:
        yield Path(program if program.startswith("/usr") else f"/usr{program}"), Path(program)
    for library in _LIBRARIES:
        yield Path(image.libraries, library), Path(image.libraries, library)
    yield from ((path, path) for path in _below(Path(image.stdlib)))
    yield from ((IMAGES / image.name / path.relative_to(image.path), path) for path in _below(image.path))
    # As it is installed: cli/ and the others in the one package.
    package = OURS / "bento_tor"
    for source, target in (("bento_tor", ""), ("cli", "cli"), ("torrc_templates", "torrc_templates")):
        for path in _below(REPOSITORY / source):
            yield package / target / path.relative_to(REPOSITORY / source), path
    for path in [*HERE.glob("*.py"), REPOSITORY / "tests/sandbox/runner.py"]:
        yield OURS / path.name, path
    yield from _distributions("bento-tor", set())


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _NEVER.search(f"{path}"):
            yield path


def _distributions(name: str, seen: set[str]) -> Iterator[tuple[Path, Path]]:
    """The files of what we need at run time, and of what that needs."""
    for line in importlib.metadata.requires(name) or []:
        found = re.match(r"[\w.-]+", line)
        if found is None or "extra ==" in line or found[0].lower() in seen:
            continue
        seen.add(found[0].lower())
        for file in importlib.metadata.files(found[0]) or []:
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file():
                yield OURS / file, path
        yield from _distributions(found[0], seen)


def _needed(files: list[Path]) -> list[Path]:
    """The shared libraries that programs and extension modules among `files` name, where they are sought."""
    binaries = [str(path) for path in files if path.suffix == ".so" or os.access(path, os.X_OK) or ".so." in path.name]
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    names = {Path(name) for name in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.MULTILINE)}
    usr = {path if path.parts[1] == "usr" else Path("/usr", *path.parts[1:]) for path in names}
    return sorted(usr - set(files))


class _Archive:
    """Writes entries one by one, each folder before what is in it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._number = 0
        self._made = {Path("/")}

    def file(self, source: Path, target: Path) -> None:
        mode = 0o100755 if os.access(source, os.X_OK) else 0o100644
        # With its own time: else Python would take each kept compiled module for an old one.
        self._entry(target, mode, source.read_bytes(), int(source.stat().st_mtime))

    def text(self, target: Path, text: str) -> None:
        self._entry(target, 0o100644, text.encode())

    def link(self, path: Path, target: str) -> None:
        self._entry(path, 0o120777, target.encode())

    def folder(self, path: Path) -> None:
        if path not in self._made:
            self._made.add(path)
            self._entry(path, 0o040755, b"")

    def end(self) -> None:
        self._write("TRAILER!!!", 0, b"")

    def _entry(self, path: Path, mode: int, data: bytes, time_s: int = 0) -> None:
        if path.parent not in self._made:
            self.folder(path.parent)
        self._write(str(path).lstrip("/"), mode, data, time_s)

    def _write(self, name: str, mode: int, data: bytes, time_s: int = 0) -> None:
        self._number += 1
        raw = name.encode() + b"\0"
        # inode, mode, uid, gid, links, time, size, device (4), length of the name, no checksum.
        fields = (self._number, mode, 0, 0, 1, time_s, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self._out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
