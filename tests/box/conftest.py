"""The command line at a real pseudo-terminal, for tests of what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WITHIN_S = 30.0


class Terminal:
    """`bento-tor` with these arguments, its keyring and its working folder in `home`."""

    def __init__(self, home: Path, *arguments: str, stdin: Path | None = None, **more: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BENTO_TOR")}
        environment |= {"BENTO_TOR_KEYRING": str(home / "keyring.json"), "TERM": "xterm", **more}
        # Nobody answers the question where the cursor is.
        environment |= {"PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200", "LINES": "50"}
        self._ours, theirs = pty.openpty()
        self.seen = b""
        source = theirs if stdin is None else os.open(stdin, os.O_RDONLY)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bento_tor.cli", *arguments],
            stdin=source,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=home,
            start_new_session=True,
            # Its controlling terminal: Ctrl-C becomes a signal.
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
        )
        for number in {source, theirs}:
            os.close(number)

    def text(self) -> str:
        """What has been shown since the last `type`, without what moves the cursor and colours."""
        return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>]|\][^\a]*\a)", "", self.seen.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        self.seen = b""
        os.write(self._ours, text.replace("\n", "\r").encode())

    def wait_for(self, *words: str) -> str:
        deadline = time.monotonic() + WITHIN_S
        while not all(word in self.text() for word in words):
            assert time.monotonic() < deadline, self.text()
            self._read(0.2)
        return self.text()

    def wait_for_prompt(self) -> None:
        """Until the shell asks for a word, and nothing else."""
        deadline = time.monotonic() + WITHIN_S
        while not self.text().rstrip(" ").endswith("bento>"):
            assert time.monotonic() < deadline, self.text()
            self._read(0.2)

    def end(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        deadline = time.monotonic() + WITHIN_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()
            self._read(0.2)
        self._read(0)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def _read(self, timeout_s: float) -> None:
        while select.select([self._ours], [], [], timeout_s)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self.seen += data
            timeout_s = 0


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start commands at a pseudo-terminal, with the same keyring as `bento`'s."""
    shown: list[Terminal] = []

    def start(*arguments: str, **more: Any) -> Terminal:
        shown.append(Terminal(tmp_path, *arguments, **more))
        return shown[-1]

    yield start
    for each in shown:
        each.close()
