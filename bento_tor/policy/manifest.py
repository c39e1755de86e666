"""The manifest: what a function asks for. Owns its form, and reading it out of a function's source.

It stands in the source as a PEP 723 block with a `[tool.bento]` table. The client reads it, line by line: the
regular expression that the PEP itself gives takes minutes on hostile input, and breaks on CRLF. What travels is the
typed struct: a box parses neither TOML nor Python.
"""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from bento_tor.errors import ConfigError

MAX_BLOCK_BYTES = 8 * 1024

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
Items = Annotated[tuple[Word, ...], msgspec.Meta(max_length=32)]

# PEP 508: a name, then a version, an extra, a URL or a condition.
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?)\s*(?:[\[(<>=!~;@].*)?$")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a function asks for. Everything has a modest default.

    entry    the function that a call without a name runs; empty: named as the file, or the only one
    image    what it sees: the name of an image that the box offers
    memory   MiB of memory; 0: whatever the box gives
    seconds  of wall-clock time; 0: whatever the box gives
    disk     MiB of /data; 0: whatever the box gives
    store    whether it keeps data between its sessions (api.store)
    egress   its way out: none, exit (under the relay's exit policy), tor (through circuits)
    hosts    the only host names that it connects to; empty: any
    host     how much it wants to know of the machine: none, coarse, full
    tor      the Tor routines it wants to use
    box      whether it uses functions of other boxes (api.box)
    packages the names of the packages it imports: PEP 723's `dependencies`, without their versions
    """

    entry: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    image: Word = "python"
    memory: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    seconds: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    disk: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    store: bool = False
    egress: Literal["none", "exit", "tor"] = "none"
    hosts: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=253)], ...], msgspec.Meta(max_length=64)] = ()
    host: Literal["none", "coarse", "full"] = "none"
    tor: Items = ()
    box: bool = False
    packages: Items = ()


# What stands in [tool.bento]: `packages` has a place of its own.
_KEYS = tuple(key for key in Manifest.__struct_fields__ if key != "packages")


def encode(manifest: Manifest) -> bytes:
    """The bytes that travel."""
    return msgspec.msgpack.encode(manifest, order="deterministic")


def decode(data: bytes) -> Manifest:
    """Raises ConfigError where the bytes are no manifest."""
    try:
        return msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as why:
        raise ConfigError(f"not a manifest: {why}") from why


def read(source: str) -> Manifest:
    """The manifest in a function's source; the default one where there is none.

    Raises ConfigError, with the reason, where there is one that cannot be used."""
    block = maybe_block(source)
    if block is None:
        return Manifest()
    try:
        table = tomllib.loads(block.text)
    except (ValueError, RecursionError) as why:  # ValueError also for a number of 5000 digits
        reason = "nested too deeply" if isinstance(why, RecursionError) else _in_the_file(str(why), block)
        raise ConfigError(f"the function's manifest is not TOML: {reason}", hint=_HINT) from why
    return from_table(table)


_HINT = "docs/writing-functions.md has its form, and 'bento-tor function new' writes one with every key"


def _in_the_file(reason: str, block: Block) -> str:
    """TOML's own line numbers count from the block's first line."""
    return re.sub(r"\(at line (\d+), column \d+\)$", lambda at: f"(line {block.line + int(at[1])})", reason)


def from_table(table: dict[str, Any]) -> Manifest:
    """The manifest in the block's TOML. Raises ConfigError."""
    tool = table.get("tool", {})
    bento = tool.get("bento", {}) if isinstance(tool, dict) else {}
    if isinstance(bento, dict) and "packages" in bento:
        raise ConfigError(
            "the function's manifest names packages in [tool.bento]", hint="dependencies = [...] above it"
        )
    if isinstance(bento, dict) and (unknown := [key for key in bento if key not in _KEYS]):
        words = f"the function's manifest has an unknown key {unknown[0]!r:.80} in [tool.bento]"
        raise ConfigError(f"{words}; there are {', '.join(_KEYS)}", hint=_HINT)
    if isinstance(bento, dict) and "dependencies" in table:
        bento = {**bento, "packages": _package_names(table["dependencies"])}
    try:
        return msgspec.convert(bento, type=Manifest)
    except msgspec.ValidationError as why:
        raise ConfigError(f"the function's manifest has a bad [tool.bento]: {why}", hint=_HINT) from why


def _package_names(dependencies: Any) -> list[str]:
    """The bare names, spelt as PEP 503 does. A box has one version of each, so the versions are for people."""
    if not isinstance(dependencies, list):
        raise ConfigError("the function's manifest has dependencies that are no list", hint=_HINT)
    names = []
    for line in dependencies:
        found = _REQUIREMENT.match(line) if isinstance(line, str) else None
        if found is None:
            raise ConfigError(f"the function's manifest has a dependency that is none: {line!r:.60}", hint=_HINT)
        names.append(package_name(found[1]))
    return names


def package_name(text: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", text).lower()


class Block(NamedTuple):
    """The TOML in a source. `line`: the number of the line that opens the block, its first one of TOML comes next."""

    line: int
    text: str


def maybe_block(source: str) -> Block | None:
    """The one `# /// script` block, or None. Linear in the source. Raises ConfigError where it cannot be found."""
    lines = [line.removesuffix("\r") for line in source.split("\n")]
    starts = [i for i, line in enumerate(lines) if line == "# /// script"]
    if not starts:
        return None
    content: list[str] = []
    closed_at: int | None = None
    for line in lines[starts[0] + 1 :]:
        if line == "# ///":
            # PEP 723: the last such line of one run of comments closes the block.
            closed_at = len(content)
        if not (line == "#" or line.startswith("# ")):
            break
        content.append(line[2:])
    if closed_at is None:
        raise ConfigError("the function's manifest is not closed with '# ///'", hint=_HINT)
    if any(start > starts[0] + closed_at for start in starts):
        raise ConfigError("the function has more than one manifest", hint=_HINT)
    block = "\n".join(content[:closed_at])
    if len(block.encode()) > MAX_BLOCK_BYTES:
        raise ConfigError(f"the function's manifest is longer than {MAX_BLOCK_BYTES} bytes", hint=_HINT)
    return Block(starts[0] + 1, block)
