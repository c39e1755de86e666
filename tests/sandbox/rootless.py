"""Runs as an ordinary user, by the system's Python, from a copy: a short form of the other tests. Prints JSON.

Argument: the directory of images."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import runner

from bento_tor.errors import SandboxError
from bento_tor.policy.limits import MIB, Limits
from bento_tor.sandbox import images, trial
from bento_tor.sandbox.jail import Jail

FUNCTIONS = {
    "returns": "def f(): return 17",
    "raises": "def f(): raise ValueError('no')",
    "exits": "import sys\ndef f(): sys.exit(3)",
    "crashes": "import os\ndef f(): os.abort()",
    "user": "import os\ndef f(): return os.getuid()",
    "passwd": "def f(): open('/etc/passwd')",
    "root": "def f(): open('/x', 'w')",
    "network": "import socket\ndef f(): socket.create_connection(('192.0.2.1', 80))",
    "forks": "import os, time\ndef f():\n  while True:\n    if os.fork() == 0: time.sleep(60)",
    "memory": "def f():\n  kept = []\n  while True: kept.append(bytearray(1 << 20))",
}


def without_user_namespaces(jail: Jail) -> str:
    """What is said where the operator has forbidden them: tried in a namespace of our own."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            uid = os.getuid()
            ctypes.CDLL(None).unshare(0x10000000)
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
            jail.start(Limits())
        except SandboxError as error:
            os.write(write, f"{error.message} | {error.hint}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.wait()
    return os.read(read, 4096).decode()


class Unlimited(Jail):
    """One that does not ask for a cgroup: Chromium would not run, but its /proc is there to be seen."""

    def _refuse_browser(self) -> None:
        pass


def look_at_proc(folder: Path) -> str:
    """What a function in the image browser sees of it."""
    names = "sorted(name for name in os.listdir('/proc') if not name.isdigit())"
    source = f"import os\ndef f(): return {names}, os.listdir('/proc/1')"
    with Unlimited(images.load(folder, "browser")) as jail:
        return runner.run(jail, source).messages[0].decode()


def without_memory_limit(folder: Path) -> str:
    """What is said where the image browser cannot be had; nothing where it can."""
    try:
        with Jail(images.load(folder, "browser")):
            return ""
    except SandboxError as error:
        return error.message


def main() -> None:
    told = {"uid": os.getuid()}
    with Jail(images.load(Path(sys.argv[1]), "python")) as jail:
        told["effective"] = sorted(jail.effective)
        trial.check(jail)
        for name, source in FUNCTIONS.items():
            talk = runner.run(jail, source, limits=Limits(pids=16, memory_bytes=64 * MIB))
            told[name] = [talk.outcome.word, talk.outcome.detail, [m.decode() for m in talk.messages]]
        told["forbidden"] = without_user_namespaces(jail)
    told["browser"] = without_memory_limit(Path(sys.argv[1]))
    told["proc"] = look_at_proc(Path(sys.argv[1]))
    print(json.dumps(told))


main()
