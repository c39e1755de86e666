"""The pages of docs/ say what is so: every command, every exit code, the protocol as it is."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from bento_tor import errors
from bento_tor.cli.main import bento_tor

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CLI_PAGE = ROOT / "docs" / "cli.md"
SOURCES = sorted(
    path
    for folder in ("bento_tor", "cli", "functions", "torrc_templates", "docs", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".torrc", ".j2", ".txt", ".md"}
)

# A path of the machine that it was written on; notes to ourselves.
LEFTOVERS = re.compile(r"(?<![\w.~])/(?:work|root|home/\w+)/|\b(?:TODO|FIXME|XXX)\b")


def commands(group: click.Command, path: str) -> Iterator[str]:
    """Every command of the tree, with the words that lead to it."""
    if not isinstance(group, click.Group):
        yield path
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{path} {name} is listed, and not there"
        yield from commands(command, f"{path} {name}")


def headings() -> list[str]:
    """The commands that docs/cli.md has a section for."""
    return re.findall(r"^### `(bento-tor [^`]*)`$", CLI_PAGE.read_text("utf-8"), re.MULTILINE)


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    assert headings() == sorted(commands(bento_tor, "bento-tor"))


def test_every_command_says_what_it_does() -> None:
    for path in commands(bento_tor, "bento-tor"):
        command: click.Command | None = bento_tor
        for name in path.split()[1:]:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), name)
        assert command is not None and command.help, f"{path} has no help"


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \|", CLI_PAGE.read_text("utf-8"), re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.BentoError)]
    used = {kind.exit_code for kind in kinds}
    # 0 is no error; 2 is click's; 130 and 141 are signals.
    assert {int(code) for code in rows} == used | {0, 2, 130, 141}


def test_the_protocol_page_is_what_the_code_says() -> None:
    maker = load(ROOT / "docs" / "make_protocol.py")
    assert maker.PAGE.read_text("utf-8") == maker.render(), "run: python docs/make_protocol.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_over_from_writing_it(path: Path) -> None:
    found = [line for line in path.read_text("utf-8").splitlines() if LEFTOVERS.search(line)]
    assert not found
