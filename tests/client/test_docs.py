"""The examples of docs/library.md are run, against a box in memory that has the functions that ship."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bento_tor import client
from bento_tor.client import box as boxes
from bento_tor.client.memory import MemoryBox, MemorySession

PAGE = Path(__file__).parent.parent.parent / "docs" / "library.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def hello(api: MemorySession) -> None:
    api.send("hello world")


def echo(api: MemorySession) -> None:
    while (message := api.recv()) != b"stop":
        api.send(message)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryBox({"hello": hello, "echo": echo}) as there:
        through: Any = partial(client.connect, transport=there)
        monkeypatch.setattr(client, "connect", through)
        monkeypatch.setattr(boxes, "connect", through)
        exec(compile(text, str(PAGE), "exec"), {"address": "unix:memory"})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5
