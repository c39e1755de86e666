"""`make test-v2`: the checks of cgroup v2, on Debian's kernel in an emulated machine (no KVM needed).

Fetches qemu and the kernel by apt-get, once; boots; prints each check; exits non-zero unless every check that is wanted
was seen, was ok, and the guest came to its end. Nothing of this machine is visible to the guest but an archive.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
# In the guest all of these are in one folder.
sys.path[:0] = [str(HERE), str(HERE.parent / "sandbox")]

import checks  # noqa: E402, F401 - fills the table of trying
import guest_root  # noqa: E402
import trying  # noqa: E402

from bento_tor.sandbox import images  # noqa: E402

CACHE = guest_root.REPOSITORY / ".cache" / "v2"
_QEMU = "qemu-system-x86_64"
# Only what the sandbox needs and the kernel does not have built in; in order of loading, by name.
_MODULES = ("fs/overlayfs/overlay.ko", "mm/zsmalloc.ko", "drivers/block/zram/zram.ko")
_INIT = "rdinit=/usr/bin/python3 -- -ISB /opt/bento/init.py"
_TIMEOUT_S = 1200
_MEMORY_MIB = 1536


class NotRun(Exception):
    """The machine cannot be had or did not come to its end."""


def main() -> int:
    """Exit status: 0 if all is well."""
    try:
        seen = boot(partial(print, flush=True))
    except NotRun as error:
        print(f"test-v2: {error}")
        return 1
    wrong = judge(seen)
    for line in wrong:
        print(f"test-v2: {line}")
    print(f"test-v2: {len(seen)} checks, {len(wrong)} wrong")
    return 1 if wrong else 0


def judge(seen: dict[str, str]) -> list[str]:
    """What is not as wanted: a check that failed, or one that was not run."""
    wrong = [f"{name}: {word}" for name, word in seen.items() if word != "ok"]
    return wrong + [f"{name}: not run" for name in wanted() if name not in seen]


def wanted() -> list[str]:
    """The checks that must have been run: those of checks.py, and the last one of init.py."""
    return [*trying.wanted(), "all no cgroup is left"]


def boot(report: Callable[[str], None]) -> dict[str, str]:
    """Run the guest. Gives check -> ok, or what was told instead. Raises NotRun."""
    qemu = _find_qemu()
    with tempfile.TemporaryDirectory(prefix="bento-v2-") as scratch:
        kernel, modules = _unpack_kernel(_find_kernel(), Path(scratch))
        archive = Path(scratch, "root.cpio")
        with archive.open("wb") as out:
            guest_root.write_archive(out, images.load(images.default_dir(), "python"), modules)
        return read(_console(qemu, kernel, archive), report)


def read(lines: Iterable[str], report: Callable[[str], None]) -> dict[str, str]:
    """What the lines of a console tell: check -> ok, or what was told instead. Raises NotRun."""
    seen: dict[str, str] = {}
    ended = False
    for line in lines:
        report(line.removeprefix("v2: ") if line.startswith("v2: ") else f"  | {line}")
        ended = ended or line == "v2: end"
        if found := re.fullmatch(r"v2: (ok|failed) (\w+) (.*?)(?: \[(.*)\])?", line):
            seen[f"{found[2]} {found[3]}"] = "ok" if found[1] == "ok" else f"failed {found[4] or ''}".strip()
    if not ended:
        raise NotRun("the guest did not come to its end: see its console, above")
    return seen


def _console(qemu: str, kernel: Path, archive: Path) -> Iterator[str]:
    """The lines that the guest writes, until it is switched off; by force once its time is up."""
    command = [qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(_MEMORY_MIB)]
    command += ["-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(kernel), "-initrd", str(archive)]
    # v1 off: as Debian 12 under systemd, where every controller is in v2.
    command += ["-append", "console=ttyS0 quiet loglevel=3 panic=-1 cgroup_no_v1=all mitigations=off " + _INIT]
    timed = ["timeout", "--kill-after=5", str(_TIMEOUT_S), *command]
    with subprocess.Popen(
        timed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if text := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1bc|\r", "", line).strip():
                    yield text
        finally:
            process.terminate()


def _find_qemu() -> str:
    found = shutil.which(_QEMU)
    if found is None:
        _apt("install", "-y", "-qq", "--no-install-recommends", "qemu-system-x86")
        found = shutil.which(_QEMU)
    if found is None:
        raise NotRun(f"there is no {_QEMU}")
    return found


def _find_kernel() -> Path:
    """The package of Debian's stock kernel; fetched once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = sorted(CACHE.glob("linux-image-*_amd64.deb"))
    if kept:
        return kept[-1]
    told = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\S+)", told)
    if found is None:
        raise NotRun("apt knows no linux-image-amd64: run 'apt-get update'")
    # First elsewhere: a download that was cut off must not be found again.
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=CACHE) as scratch:
        _apt("download", found[1], cwd=scratch)
        (file,) = Path(scratch).glob("*.deb")
        return file.rename(CACHE / file.name)


def _unpack_kernel(package: Path, scratch: Path) -> tuple[Path, list[Path]]:
    """The kernel and its modules, in the order in which they are loaded."""
    subprocess.run(["dpkg-deb", "-x", str(package), str(scratch / "kernel")], check=True)
    (kernel,) = (scratch / "kernel/boot").glob("vmlinuz-*")
    modules = []
    for number, name in enumerate(_MODULES):
        (found,) = (scratch / "kernel/lib/modules").glob(f"*/kernel/{name}")
        modules.append(found.rename(scratch / f"{number}-{found.name}"))
    return kernel, modules


def _apt(*arguments: str, cwd: str = "/") -> None:
    command = ["apt-get", *arguments]
    if os.geteuid() != 0 and arguments[0] != "download":
        command = ["sudo", *command]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for again in (True, False):
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if again:  # the lists of a fresh machine are old or empty
            update = ["apt-get", "update", "-qq"] if os.geteuid() == 0 else ["sudo", "apt-get", "update", "-qq"]
            subprocess.run(update, env=environment, capture_output=True)
    raise NotRun(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
