"""The house of docs/architecture.md, checked in the source: who imports whom, and who touches what.

Reads the files with `ast` and runs none of them.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Where the packages of `bento_tor` lie (setup.cfg's package_dir).
MAPPED = {
    "bento_tor.cli": "cli",
    "bento_tor.functions": "functions",
    "bento_tor.torrc_templates": "torrc_templates",
}

# Each line may import from the lines under it; names on one line never import each other.
LINES = [
    {"cli"},
    {"server", "client", "network"},
    {"gate"},
    {"controller", "sandbox", "egress"},
    {"protocol", "policy"},
    {"config", "resources"},
    {"errors"},
]
LEVEL = {name: len(LINES) - number for number, line in enumerate(LINES) for name in line}
# Text that travels or is read as data: nothing imports it, and it imports nothing of ours.
DATA = {"functions", "torrc_templates"}
# Text that travels into the sandbox.
TRAVELS = {"sandbox.driver", "sandbox.torgate", "egress.inside"}

# Modules of others, and the only parts that may import them.
ONLY_IN = {
    "stem": {"controller"},
    "click": {"cli"},
    "rich": {"cli"},
    "prompt_toolkit": {"cli"},
    "socket": {"client", "server", "gate", "egress", "sandbox", "network", "controller"},
    "socks": {"client", "server", "egress", "sandbox", "network", "controller"},
    "subprocess": {"sandbox", "controller", "network", "egress", "cli.demo", "client.apart"},
}
# What a pure core never needs: I/O, time, chance, threads.
IMPURE = {"asyncio", "io", "os", "pathlib", "random", "secrets", "select", "shutil", "socket", "ssl"} | {
    "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip
PURE = {"protocol", "policy"}
VAGUE = ("Manager", "Helper", "Handler", "Utils", "Util")

Source = tuple[str, ast.Module]


def sources() -> Iterator[Source]:
    """Every module that is installed: its dotted name without `bento_tor.`, and its tree."""
    for package, folder in {"bento_tor": "bento_tor", **MAPPED}.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
            tree = ast.parse(path.read_text("utf-8"), str(path))
            yield name.removeprefix("bento_tor."), tree


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Everything that a module imports, also in functions; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["bento_tor", *name.split(".")][: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """`cli.client.run` -> `cli`; the front door is `bento_tor`."""
    return "bento_tor" if name == "__init__" else name.split(".")[0]


def faults(name: str, tree: ast.Module) -> Iterator[str]:
    """Every rule that a module breaks."""
    for imported in imports(name, tree):
        yield from _import_faults(name, imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: an assert, which python -O leaves out"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if part(name) not in {"cli", "functions"}:
                yield f"line {node.lineno}: prints"
        elif isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE):
            yield f"line {node.lineno}: {node.name} says nothing about what it is"


def _import_faults(name: str, imported: str) -> Iterator[str]:
    top = imported.split(".")[0]
    if top == "bento_tor":
        yield from _house_faults(name, imported)
    for module, places in ONLY_IN.items():
        if top == module and name not in places and part(name) not in places and part(name) != "functions":
            yield f"imports {module}"
    if part(name) in PURE and top in IMPURE:
        yield f"is a pure core, and imports {top}"


def _house_faults(name: str, imported: str) -> Iterator[str]:
    ours, theirs = part(name), part(imported.removeprefix("bento_tor."))
    if ours in DATA or name in TRAVELS:
        yield f"travels alone, and imports {imported}"
    elif theirs in DATA:
        yield f"imports {imported}, which is data"
    elif ours == "bento_tor" or theirs not in LEVEL:
        return  # the front door; or a name that stands in it
    elif ours not in LEVEL:
        yield "has no place in the house"
    elif ours != theirs and LEVEL[theirs] >= LEVEL[ours]:
        yield f"imports {imported}, which is not under it"


def test_every_module_keeps_to_its_place() -> None:
    found = [f"{name} {fault}" for name, tree in sources() for fault in faults(name, tree)]
    assert not found, "\n".join(found)


def test_the_house_is_all_there() -> None:
    parts = {part(name) for name, _ in sources()} - {"bento_tor"}
    assert parts <= set(LEVEL) | DATA
    # Else this file looks in the wrong place.
    assert set(LEVEL) | DATA <= parts


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("protocol.frames", "from bento_tor.server import box", "not under it"),
        ("protocol.frames", "from bento_tor.policy import manifest", "not under it"),
        ("client.box", "def f():\n    import bento_tor.network.plan", "not under it"),
        ("errors", "from . import resources", "not under it"),
        ("server.box", "from ..client import route", "not under it"),
        ("protocol.__init__", "from ..server import box", "not under it"),
        ("server.box", "from ..functions import hello", "which is data"),
        ("functions.hello", "import bento_tor", "travels alone"),
        ("sandbox.driver", "from bento_tor.errors import BentoError", "travels alone"),
        ("egress.inside", "from bento_tor.egress import socks5", "travels alone"),
        ("egress.link", "from bento_tor.sandbox import keeper", "not under it"),
        ("surprise", "from bento_tor import errors", "no place in the house"),
        ("server.box", "import stem.control", "imports stem"),
        ("server.box", "import click", "imports click"),
        ("policy.limits", "from socket import socket", "imports socket"),
        ("cli.main", "import subprocess", "imports subprocess"),
        ("policy.limits", "from pathlib import Path", "imports pathlib"),
        ("client.box", "print('hello')", "prints"),
        ("client.box", "assert True", "an assert"),
        ("client.box", "class BoxManager: pass", "says nothing"),
    ],
)
def test_a_fault_is_found(name: str, text: str, fault: str) -> None:
    assert fault in "\n".join(faults(name, ast.parse(text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("server.box", "from bento_tor.protocol import messages\nfrom bento_tor.errors import BentoError"),
        ("server.box", "from bento_tor.server import store\nfrom . import desk"),
        ("cli.demo", "import subprocess, click\nfrom bento_tor import __version__\nprint(1)"),
        ("__init__", "from bento_tor.client import connect"),
        ("protocol.__init__", "from . import frames"),
    ],
)
def test_what_is_allowed_is_no_fault(name: str, text: str) -> None:
    assert not list(faults(name, ast.parse(text)))


def test_setup_cfg_names_exactly_the_packages_that_are_there() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = config["options"]["packages"].split()
    there = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in {"bento_tor": "bento_tor", **MAPPED}.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(there)
    mapped = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    assert mapped == {"bento_tor": "bento_tor", **MAPPED}
    # A folder with modules and no __init__.py would be left out of the wheel, in silence.
    for folder in ("bento_tor", *MAPPED.values()):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path
