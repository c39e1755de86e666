"""Runs the command line over and over, each time in a fresh child of a process that has all modules loaded; and ends
one with SIGKILL before its n-th step, if asked to.

Standard input: a JSON object a line, `{"arguments": [...], "kill_at": n or null, "note": path}`; standard output: one,
`{"status": ...}`. A step is a change of a file (Python's audit events) or a command to tor that changes it."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from types import FrameType
from typing import Any

import bento_tor.cli.setup_relay
import bento_tor.controller.setting_up
import bento_tor.server.state  # noqa: F401 - loaded before the first child
from bento_tor.cli.main import main

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.setxattr"}
_WRITES = os.O_WRONLY | os.O_RDWR
_TO_TOR = ("SETCONF", "RESETCONF", "SIGNAL")


def _is_ours(event: str, arguments: tuple[Any, ...]) -> bool:
    """Not the copies that tor verifies (removed relative to a descriptor), nor the interpreter's own files."""
    path = str(arguments[0]) if arguments else ""
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
        return False
    return "bento-verify-" not in path and not path.endswith(".pyc") and path != os.devnull


def _kill_at(number: int, note: str) -> None:
    seen = 0

    def step(what: str) -> None:
        nonlocal seen
        if seen == number:
            fd = os.open(note, os.O_RDONLY)  # made by the test: opened without a step of its own
            os.close(fd)
            os.truncate(note, 0)
            with os.fdopen(os.open(note, os.O_WRONLY | os.O_APPEND), "w") as out:
                out.write(what)
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    armed = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal armed
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if armed and (event in _CHANGES or opens) and _is_ours(event, arguments):
            armed = seen < number  # the note itself is no step
            step(f"{event} {arguments[0]}")

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal armed
        if event in ("call", "return") and frame.f_code.co_qualname == "Tor.ask":
            command = str(frame.f_locals.get("command", ""))
            if armed and command.startswith(_TO_TOR):
                armed = seen < number
                step(f"{event} {command.split(' ', 1)[0]}")

    sys.addaudithook(audit)
    sys.setprofile(profile)


def _child(order: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["bento-tor", *order["arguments"]]
    if order["kill_at"] is not None:
        _kill_at(order["kill_at"], order["note"])
    main()


tempfile.gettempdir()  # it looks for one by trying: no steps of ours
for line in sys.stdin:
    child = os.fork()
    if not child:
        _child(json.loads(line))
    print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}), flush=True)
