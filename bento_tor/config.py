"""TOML -> frozen values, and where things are kept by default. What the values mean is their owners' business."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from bento_tor.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path, form: type[T]) -> T:
    """The file as a value of type `form`. Raises ConfigError, naming file and key, where it cannot be read or used."""
    try:
        text = path.read_bytes()
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}") from why
    try:
        return msgspec.toml.decode(text, type=form)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path} cannot be used: {why}", hint="docs/cli.md lists the settings") from why


def data_dir() -> Path:
    """Where bento-tor keeps what must last: /var/lib/bento-tor as root, the user's data folder otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/bento-tor")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "bento-tor"


def user_dir() -> Path:
    """Where a user's own things are kept (the keyring), whoever the user is."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "bento-tor"
