"""Pid 1 of the guest: mounts, then one group of checks after the other, each in a cgroup as systemd would make it.

Prints what they print, and at last how many checks there were. Then the machine is switched off."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

UID = 1000
GROUP_S = 400
TREE = Path("/sys/fs/cgroup")
CONTROLLERS = "+memory +pids +cpu"
_MS_BIND, _MS_REC, _MS_MOVE = 4096, 16384, 8192
_POWER_OFF = 0x4321FEDC  # reboot(2)
_FINIT_MODULE = 313  # x86-64
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def leave_first_root() -> None:
    """bubblewrap's pivot_root does not work from the root that the kernel unpacks: cover it with itself."""
    mount("/", "/mnt", "none", _MS_BIND)
    os.chdir("/mnt")
    mount(".", "/", "none", _MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def prepare() -> None:
    leave_first_root()
    for source, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")):
        mount(source, target, source)
    os.chmod("/tmp", 0o1777)
    os.chown("/home/operator", UID, UID)
    mount("cgroup2", str(TREE), "cgroup2")
    for module in sorted(Path("/modules").iterdir()):
        with module.open("rb") as file:
            if _libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0) != 0:
                raise OSError(ctypes.get_errno(), str(module))
    subprocess.run(["/usr/sbin/ldconfig"], check=True)
    swap_on(64 << 20)


def swap_on(size: int) -> None:
    """Swap space in compressed memory; its header as mkswap(8) writes it."""
    Path("/sys/block/zram0/disksize").write_text(str(size))
    header = bytearray(4096)
    header[1024:1032] = (1).to_bytes(4, "little") + (size // 4096 - 1).to_bytes(4, "little")
    header[-10:] = b"SWAPSPACE2"
    Path("/dev/zram0").write_bytes(header)
    if _libc.swapon(b"/dev/zram0", 0) != 0:
        raise OSError(ctypes.get_errno(), "swapon")


def make_group(name: str, *, delegated: bool) -> Path:
    """Below a slice, with limits of its own; delegated as systemd does it: the folder and three files."""
    (TREE / "cgroup.subtree_control").write_text(CONTROLLERS)
    (TREE / "bento.slice").mkdir(exist_ok=True)
    (TREE / "bento.slice/cgroup.subtree_control").write_text(CONTROLLERS)
    group = TREE / "bento.slice" / name
    group.mkdir()
    (group / "memory.max").write_text(str(512 << 20))
    (group / "pids.max").write_text("300")
    if delegated:
        for path in (group, *(group / f"cgroup.{file}" for file in ("procs", "subtree_control", "threads"))):
            os.chown(path, UID, UID)
    return group


def run(name: str, group: Path, uid: int) -> None:
    """One group of checks, started inside `group` as `uid`; our console is theirs."""

    def enter() -> None:
        (group / "cgroup.procs").write_text("0")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    home = "/root" if uid == 0 else "/home/operator"
    environment = {"HOME": home, "PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": "/opt/bento", "LANG": "C.UTF-8"}
    command = ["/usr/bin/python3", "-sB", "/opt/bento/checks.py", name]
    status = subprocess.run(command, preexec_fn=enter, env=environment, cwd="/", timeout=GROUP_S).returncode
    print(f"v2: group {name} {status}", flush=True)


def main() -> None:
    prepare()
    print(f"v2: booted {os.uname().release}", flush=True)
    run("delegated", make_group("delegated.service", delegated=True), UID)
    run("root", make_group("root.service", delegated=False), 0)
    run("undelegated", make_group("undelegated.service", delegated=False), UID)
    shared = make_group("shared.scope", delegated=False)
    stranger = subprocess.Popen(["/usr/bin/python3", "-ISc", "import signal; signal.pause()"])
    (shared / "cgroup.procs").write_text(str(stranger.pid))
    run("shared", shared, 0)
    stranger.kill()
    run("top", TREE, 0)
    left = [str(path) for path in TREE.glob("**/bento-tor-*")]
    print(f"v2: {'ok' if not left else 'failed'} all no cgroup is left {left or ''}", flush=True)
    print("v2: end", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print(f"v2: failed all the guest's first process: {error!r}", file=sys.stdout, flush=True)
    finally:
        os.sync()
        _libc.reboot(ctypes.c_int(_POWER_OFF))
