"""The file that an author begins with: a small function that works, under every key that a manifest may have."""

from __future__ import annotations

import inspect
import json
import keyword
import re

from bento_tor import resources
from bento_tor.errors import ConfigError
from bento_tor.policy.manifest import Manifest

_MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# They mean something else in the file.
_TAKEN = frozenset({"api", "__bento__"})
_TEXT = '''\
"""Greet somebody, then say each message back until the input ends. Argument: a name (optional).

The first line says what the function does, and what it takes: it is what others read of it.
"""

# What it asks of a box. A line that begins with "# #" asks for nothing: its value is the default.
# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
{settings}
# ///


def {name}(who="world"):
    api.send(f"hello {{who}}")
    count = 0
    while True:
        try:
            message = api.recv()
        except EOFError:
            return f"messages: {{count}}"
        count += 1
        api.send(b"you said: " + message)
'''


def check_name(name: str) -> str:
    """A name that a function, its file and its entry can have. Raises ConfigError."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ConfigError(
            f"{name!r:.80} is no name for a function", hint="letters, digits and '_', at most 64, no digit first"
        )
    if keyword.iskeyword(name) or name in _TAKEN:
        raise ConfigError(f"{name!r} means something else in Python or to a box", hint="choose another name")
    if name in resources.shipped_functions():
        raise ConfigError(
            f"a function that ships is called {name!r}",
            hint=f"choose another name; 'bento-tor function show {name}' prints that one to begin with",
        )
    return name


def render(name: str) -> str:
    """The text of its file."""
    return _TEXT.format(name=name, settings="\n".join(f"# {line}" for line in _settings(name)))


def _settings(name: str) -> list[str]:
    said = {"entry": name, "image": "python"}
    meanings = meanings_of_keys()
    lines = []
    for key, default in _defaults().items():
        mark = "" if key in said else "# "
        setting = f"{mark}{key} = {json.dumps(said.get(key, default))}"
        lines.append(f"{setting:<22} # {meanings[key]}")
    return lines


def meanings_of_keys() -> dict[str, str]:
    """What each key of `[tool.bento]` means, in a line, as the manifest's own text has it."""
    found = dict(re.findall(r"^([a-z_]+) +(.+)$", inspect.getdoc(Manifest) or "", re.MULTILINE))
    return {key: found.get(key, "") for key in _defaults()}


def _defaults() -> dict[str, object]:
    """Without `packages`, which is said in `dependencies`."""
    pairs = zip(Manifest.__struct_fields__, Manifest.__struct_defaults__, strict=True)
    return {key: default for key, default in pairs if key != "packages"}
