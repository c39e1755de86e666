"""TOML -> frozen values, and where things are kept by default. What the values mean is their owners' business."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bento_tor.errors import ConfigError

T = TypeVar("T")

# Longer ones are no settings, and finding the line of a fault takes the square of the number of lines.
_MAX_BYTES = 64 * 1024
_MAX_LINES = 1000


def read_toml(path: Path, form: type[T]) -> T:
    """The file as a value of type `form`. Raises ConfigError, naming file, line and key, where it cannot be used."""
    try:
        data = path.read_bytes()
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}") from why
    return parse_toml(data, form, str(path))


def parse_toml(data: bytes, form: type[T], source: str) -> T:
    """The text as a value of type `form`. Raises ConfigError, which names `source`, the line and the key."""
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{source} cannot be used: it is longer than {_MAX_BYTES} bytes", hint=_HINT)
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    try:
        data.decode()
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as why:
        maybe_line = None if " line " in str(why) else _maybe_end_of_good(text)
        where = "" if maybe_line is None else f"line {maybe_line}: "
        raise ConfigError(f"{source} cannot be used: {where}{why}", hint=_HINT) from why
    try:
        return msgspec.convert(table, form)
    except msgspec.ValidationError as why:
        keys, reason = _fault(str(why))
        maybe_line = maybe_line_of(text, keys)
        where = "" if maybe_line is None else f"line {maybe_line}: "
        raise ConfigError(f"{source} cannot be used: {where}{reason}", hint=_HINT) from why


def maybe_line_of(text: str, keys: list[str]) -> int | None:
    """The number of the line on which the key's own statement begins; None where it is not in the text.

    Found by reading ever more lines of it, so that TOML's own reader decides what is a key and what a string."""
    begins = 0
    for count, table in _prefixes(text):
        if keys and _has(table, keys):
            return begins + 1
        begins = count
    return None


def _maybe_end_of_good(text: str) -> int | None:
    """The line behind the last one up to which the text can be read."""
    return max((count for count, _ in _prefixes(text)), default=0) + 1 if text.count("\n") < _MAX_LINES else None


def _prefixes(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The text's beginnings that can be read: the number of lines, and what they say."""
    lines = text.split("\n")
    for count in range(1, min(len(lines), _MAX_LINES) + 1):
        # What cannot be read ends within a value of several lines.
        with suppress(ValueError, RecursionError):
            yield count, tomllib.loads("\n".join(lines[:count]))


_HINT = "docs/cli.md lists the settings"


def _has(table: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


def _fault(message: str) -> tuple[list[str], str]:
    """The path of keys at which msgspec's message finds fault, and the message with that key in front."""
    reason, _, place = message.partition(" - at `")
    keys = re.findall(r"\.([^.\[\]`]+)", place)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        keys.append(unknown[1])
        return keys, f"there is no setting {'.'.join(keys)!r}"
    # A rule of ours, not of a type, begins with its key.
    own = re.match(r"([a-z_]+(?:\.[a-z_]+)*)(?=:| must )", reason)
    if own:
        keys += own[1].split(".")
        reason = reason[own.end() :].removeprefix(":").strip()
    return keys, f"{'.'.join(keys)}: {reason[:1].lower()}{reason[1:]}"


def data_dir() -> Path:
    """Where bento-tor keeps what must last: /var/lib/bento-tor as root, the user's data folder otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/bento-tor")
    return user_dir()


def user_dir() -> Path:
    """Where a user's own things are kept (the keyring), whoever the user is."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "bento-tor"
