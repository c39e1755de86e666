"""Functions as others read them: a name, a line, what they ask for. Nothing of them is run, nor imported."""

from __future__ import annotations

import ast

import msgspec

from bento_tor import resources
from bento_tor.client import source
from bento_tor.policy.manifest import Manifest
from bento_tor.sandbox import offered


class Entry(msgspec.Struct, frozen=True):
    """A function. `doc`: its docstring, whose first line is `line`; `asks`: in words, what not every function has."""

    name: str
    line: str
    asks: tuple[str, ...]
    doc: str
    manifest: Manifest


def shipped() -> list[Entry]:
    """All that ship, by name."""
    return [describe(source.load(name)) for name in resources.shipped_functions()]


def describe(function: source.Source) -> Entry:
    """What there is to know of one."""
    doc = ast.get_docstring(ast.parse(function.text)) or ""
    manifest = function.manifest
    asks = tuple(_words(key, value) for key, value in offered.asked(manifest).items())
    return Entry(function.name, doc.partition("\n")[0], asks, doc, manifest)


def _words(key: str, value: object) -> str:
    if value is True:
        return key
    return f"{key} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
