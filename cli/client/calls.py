"""What a user types to say which function to run and with what: shared by `run`, `exec` and the shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from bento_tor import resources
from bento_tor.client import source
from bento_tor.client.keyring import Kept
from bento_tor.client.source import Call, Source
from bento_tor.errors import ConfigError

_CALL = re.compile(r"\s*([^\W\d]\w*)\s*\(.*\)\s*", re.DOTALL)


class CallingCommand(click.Command):
    """A command whose last arguments are a function's. Negative numbers among them are no options; what else begins
    with a dash and is no option of ours goes to the function only behind `--`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        behind = len(args) - args.index("--") - 1 if "--" in args else 0
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        said = [value for param in self.params for value in _words(param, ctx.params.get(param.name or ""))]
        for word in said[: max(0, len(said) - behind)]:
            if word.startswith("-") and word != "-" and not _is_number(word):
                raise click.NoSuchOption(word, _message(ctx, word), ctx=ctx)
        return rest


def _words(param: click.Parameter, value: Any) -> list[str]:
    if not isinstance(param, click.Argument):
        return []
    return [value] if isinstance(value, str) else list(value or ())


def _message(ctx: click.Context, word: str) -> str:
    if word in ("-q", "-v", "--quiet", "--verbose"):
        return f"{word} is an option of bento-tor itself: bento-tor {word} client {ctx.info_name} ..."
    return f"{ctx.info_name} has no option {word}; to give it to the function, put -- before its arguments"


def _is_number(word: str) -> bool:
    return isinstance(source.literal(word), int | float | complex)


image_option = click.option("--image", metavar="NAME", help="Run it in this image, whichever its manifest names.")


def load_source(path: str, maybe_image: str | None = None) -> Source:
    """The function in this file, or the one that ships under this name; for this image, where one is given."""
    function = source.parse(*read_source(path))
    return function if maybe_image is None else function.in_image(maybe_image)


def read_source(path: str) -> tuple[str, str]:
    """Its name and text, not looked at yet."""
    if not path.strip():
        shipped = ", ".join(resources.shipped_functions())
        raise click.UsageError(f"FILE is empty: name a file of Python, or a function that ships ({shipped})")
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder", hint="a function is one file of Python source")
    return source.read_text(path)


def entry_of(function: Source) -> str:
    """The call that a keyring notes for it: its entry, where that is known."""
    return function.manifest.entry or (function.name if function.name in function.functions else "")


def call_of(function: Source, arguments: tuple[str, ...], call_text: str | None) -> Call:
    """What to run of a function that is at hand."""
    if call_text is not None:
        return _parse(arguments, call_text)
    return source.entry_call(function, list(arguments))


def call_of_kept(kept: Kept, arguments: tuple[str, ...], call_text: str | None) -> Call:
    """What to run of a stored function."""
    if call_text is not None:
        return _parse(arguments, call_text)
    if not kept.entry:
        raise ConfigError("which of its functions to run is not known", hint="name it: --call 'main()'")
    return source.make_call(kept.entry, *[source.literal(argument) for argument in arguments])


def _parse(arguments: tuple[str, ...], call_text: str) -> Call:
    if arguments:
        raise click.UsageError("give arguments either in --call or after the function")
    return source.parse_call(call_text)


def read_calling(rest: str) -> tuple[str, tuple[str, ...], str | None]:
    """`add 5 12`, `add add(5, 12)` or `add(5, 12)`: the function, its arguments, its call."""
    if alone := _CALL.fullmatch(rest):
        return alone[1], (), rest
    name, _, call = rest.partition(" ")
    if _CALL.fullmatch(call):
        return wanted(name, "a function"), (), call
    try:
        words = shlex.split(rest)
    except ValueError as why:
        raise click.UsageError(f"this cannot be read: {why}") from why
    return wanted(words[0] if words else "", "a function"), tuple(words[1:]), None


def wanted(rest: str, what: str) -> str:
    """The one word that is there. Standard input, where `-` would look for a ticket, is our own lines."""
    if not rest or rest == "-":
        raise click.UsageError(f"name {what}")
    return rest
