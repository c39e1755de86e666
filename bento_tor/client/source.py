"""A function's source on the user's side: read, checked, its manifest and its call found. Nothing of it is run here."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Literal, cast, overload

import msgspec

from bento_tor import resources
from bento_tor.errors import ConfigError
from bento_tor.policy.manifest import Manifest, read
from bento_tor.protocol.messages import MAX_ARGUMENTS_BYTES, MAX_CODE_BYTES

# Python 3.11's parser keeps a count that threads spoil for one another ("recursion depth mismatch").
_PARSING = threading.Lock()


@overload
def parse_python(text: str) -> ast.Module: ...
@overload
def parse_python(text: str, *, mode: Literal["eval"]) -> ast.Expression: ...
def parse_python(text: str, *, mode: str = "exec") -> ast.Module | ast.Expression:
    """`ast.parse`, for several threads."""
    with _PARSING:
        tree = ast.parse(text, mode=mode)
    return cast("ast.Module | ast.Expression", tree)


def read_literal(text: str) -> object:
    """`ast.literal_eval`, for several threads."""
    return ast.literal_eval(parse_python(text.lstrip(" \t"), mode="eval"))


def read_arguments(text: str) -> tuple[list[object], dict[str, object]]:
    """The arguments of a call, as they travel."""
    positional, by_name = cast(tuple[list[object], dict[str, object]], read_literal(text))
    return positional, by_name


class Source(msgspec.Struct, frozen=True):
    """A function's text, its manifest, and the names that a call may use."""

    name: str
    text: str
    manifest: Manifest
    functions: tuple[str, ...]


class Call(msgspec.Struct, frozen=True):
    """What to run: a name, and the literal source of `(positional, by_name)`. `onward`: for a function that asks."""

    name: str
    arguments: str = "((), {})"
    onward: bool = False


def load(path: str) -> Source:
    """Read a function from a file, or one that ships by its name.

    Raises ConfigError where there is no such file, or it is no Python."""
    if "/" not in path and not Path(path).exists() and path.removesuffix(".py") in resources.shipped_functions():
        name = path.removesuffix(".py")
        return parse(name, resources.read_text("functions", f"{name}.py"))
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as why:
        shipped = ", ".join(resources.shipped_functions())
        raise ConfigError(f"cannot read {path}: {why.strerror}", hint=f"these functions ship: {shipped}") from why
    try:
        return parse(file.stem, data.decode("utf-8-sig"))
    except UnicodeDecodeError as why:
        raise ConfigError(f"{path} is not a Python file: it is not UTF-8 text") from why


def parse(name: str, text: str) -> Source:
    """Check that `text` is Python that a box would take."""
    if len(text.encode()) > MAX_CODE_BYTES:
        raise ConfigError(f"{name} is larger than {MAX_CODE_BYTES // 1024} KiB, the most that a box takes")
    try:
        tree = parse_python(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as why:
        where = f" (line {why.lineno}: {why.msg})" if isinstance(why, SyntaxError) else f" ({why})"
        raise ConfigError(f"{name} is not Python{where}", hint="a function is one file of Python source") from why
    functions = tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return Source(name, text, read(text), functions)


def entry_call(source: Source, arguments: list[str]) -> Call:
    """The call of the function's entry with arguments as typed by a user: literals where they are, else strings."""
    return make_call(_entry(source), *[literal(argument) for argument in arguments])


def make_call(name: str, *positional: object, **by_name: object) -> Call:
    """A call with these values, which must be Python literals."""
    try:
        arguments = repr((positional, by_name))
        read_literal(arguments)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as why:
        raise ConfigError(
            f"the arguments of {name} are not literals", hint="use numbers, strings, lists, dicts"
        ) from why
    if len(arguments.encode()) > MAX_ARGUMENTS_BYTES:
        raise ConfigError(
            f"the arguments take more than {MAX_ARGUMENTS_BYTES // 1024} KiB",
            hint="send them as input instead",
        )
    return Call(name, arguments)


def parse_call(text: str) -> Call:
    """`add(5, 12)` -> a call. Only a name and literals: it is read, never evaluated."""
    hint = "for instance --call 'add(5, 12)'"
    try:
        node = parse_python(text.strip(), mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError("not a call of a name")
        positional = [ast.literal_eval(argument) for argument in node.args]
        by_name = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        if len(by_name) != len(node.keywords):
            raise ValueError("** is not allowed")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as why:
        raise ConfigError(f"{text!r} is not a call with literal arguments", hint=hint) from why
    return make_call(node.func.id, *positional, **by_name)


def _entry(source: Source) -> str:
    if source.manifest.entry:
        return source.manifest.entry
    if source.name in source.functions:
        return source.name
    if len(source.functions) == 1:
        return source.functions[0]
    if not source.functions:
        raise ConfigError(f"{source.name} defines no function", hint="define one, for instance def main(): ...")
    raise ConfigError(
        f"{source.name} defines {len(source.functions)} functions and does not say which to run",
        hint=f"name one with --call, or set entry in its manifest: {', '.join(source.functions[:8])}",
    )


def literal(text: str) -> object:
    """An argument as typed by a user: a Python literal where it is one, else the string itself."""
    try:
        value = read_literal(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return value
