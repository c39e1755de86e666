"""The drop-in file and the two lines that include it: what they hold. Pure: settings and wishes in, text out.

The torrc itself gets a mark and an %include in front, and nothing else of it is touched: taking them out leaves every
byte as it was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import jinja2
import msgspec

from bento_tor.controller.debian import Instance
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.relay import SERVICE_DIR, VIRTUAL_ADDRESS, RelayPart, Wanted
from bento_tor.controller.settings import Settings
from bento_tor.errors import ConfigError
from bento_tor.resources import read_text

MARK = "Managed by bento-tor setup-relay."
_MARK_LINE = f"# {MARK} The next line as well; `bento-tor setup-relay --undo` takes both away.\n"
_INCLUDE = re.compile(r"^[ \t]*%include[ \t]+([^#\n]+)", re.MULTILINE | re.IGNORECASE)
_OWNER = re.compile(r"^# It belongs to the box in (.*)\.$", re.MULTILINE)

_NICKNAME = re.compile(r"[A-Za-z0-9]{1,19}")
_ORPORT = re.compile(r"(?:[0-9.]+:|\[[0-9A-Fa-f:.]+\]:)?([0-9]{1,5})")
_BANDWIDTH = re.compile(r"[0-9]{1,12} ?(?:[KMG]?(?:Bytes?|Bits?)|[KMG]B)?", re.IGNORECASE)
_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})")
MAX_CONTACT = 512
# A bare value ends at a blank or a comment sign; these go without quotes.
_PLAIN_TARGET = re.compile(r"[A-Za-z0-9_./:\[\]@+,=-]+")

_ENVIRONMENT = jinja2.Environment(  # noqa: S701 - a torrc is no HTML: nothing to escape
    loader=jinja2.FunctionLoader(lambda name: read_text("torrc_templates", name)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


class Ours(msgspec.Struct, frozen=True):
    """What is ours in an instance's files. `dropin` None: there is no such file."""

    dropin: bytes | None
    included: bool


NOTHING = Ours(None, included=False)


@dataclass(frozen=True)
class _Exit:
    relay: str | None = None
    policy: tuple[str, ...] = ()
    reduced: bool = False


def check(wanted: Wanted) -> None:
    """Raises ConfigError for a value that is none: a line break in one would be a torrc line of its own."""
    endpoint = Endpoint.parse(wanted.target)
    if not _PLAIN_TARGET.fullmatch(str(endpoint)):
        raise ConfigError(f"tor cannot be led to {wanted.target!r}", hint="choose a plain path")
    if not wanted.state.isprintable():
        raise ConfigError(f"the state folder {wanted.state!r} cannot be named in a torrc", hint="choose a plain path")
    if wanted.relay is not None:
        _check_relay(wanted.relay)


def render(wanted: Wanted, own: Settings) -> bytes:
    """The drop-in for `wanted` beside the operator's `own` settings. Raises ConfigError where they do not go
    together."""
    check(wanted)
    if wanted.relay is not None and own.is_relay:
        raise ConfigError(
            "this tor is a relay already: its torrc has an ORPort",
            hint="leave out --nickname and what belongs to it: the relay's own settings stay where they are",
        )
    if wanted.exit_port is not None and wanted.relay is None and not own.is_relay:
        raise ConfigError(
            "this tor is no relay (it has no ORPort): it cannot be a way in by exit", hint="make it one: --nickname"
        )
    template = _ENVIRONMENT.get_template("box.torrc")
    folder = str(Path(own.one("DataDirectory")) / SERVICE_DIR)
    text = template.render(mark=MARK, wanted=wanted, exit=_exit(wanted, own), service_dir=folder)
    return text.encode()


def check_taken(wanted: Wanted, meant: Settings) -> None:
    """Whether tor takes our lines as we wrote them: a single option of the torrc's own goes over ours, and an exit
    policy in front of ours may reject the box. Raises ConfigError that names it."""
    policy = meant.all("ExitPolicy")
    if wanted.exit_port is not None and policy[:1] != (f"accept {VIRTUAL_ADDRESS}:{wanted.exit_port}",):
        hint = "put its %include line above every ExitPolicy"
        raise ConfigError("the torrc has an ExitPolicy in front of the box's", hint=hint)
    if wanted.relay is None:
        return
    for key, value, option in (
        ("Nickname", wanted.relay.nickname, "--nickname"),
        ("ORPort", wanted.relay.orport, "--orport"),
        ("ContactInfo", wanted.relay.contact, "--contact"),
    ):
        if value and meant.all(key) != (value,):
            raise ConfigError(
                f"the torrc sets {key} itself, to {meant.one(key)!r}: its line goes over ours",
                hint=f"take that line out, or leave out {option}",
            )


def with_include(torrc: bytes, dropin: Path) -> bytes:
    """The torrc with our two lines in front; the same where it has them."""
    block = _block(dropin)
    return torrc if block in torrc else block + torrc


def without_include(torrc: bytes, dropin: Path) -> bytes:
    """The torrc without them, to the byte as it was."""
    return torrc.replace(_block(dropin), b"")


def is_included(torrc: bytes, dropin: Path) -> bool:
    """Whether it has them."""
    return _block(dropin) in torrc


def maybe_owner(content: bytes) -> str | None:
    """The state folder of the box that a drop-in belongs to; None: it is not of ours."""
    text = content.decode("utf-8", "replace")
    found = _OWNER.search(text) if MARK in text.partition("\n")[0] else None
    return found[1] if found else None


def include_line(dropin: Path) -> str:
    """As a pattern: tor ends at an %include of a file that is not there, and does not mind a pattern without match."""
    return f"%include {dropin.parent}/*.conf"


def includes_it(torrc: bytes, dropin: Path) -> bool:
    """Whether an %include of the operator's own takes the drop-in already; a second one would take it twice."""
    values = _INCLUDE.findall(without_include(torrc, dropin).decode("utf-8", "replace"))
    paths = [value.strip().strip('"').rstrip("/") for value in values]
    return any(_matches(dropin, path) or _matches(dropin.parent, path) for path in paths)


def _matches(path: Path, pattern: str) -> bool:
    """As glob(3) has it: a star ends at a slash."""
    names, patterns = path.parts, Path(pattern).parts
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def check_free(instance: Instance, ours: Ours, state: str) -> None:
    """Raises ConfigError where the drop-in belongs to somebody else."""
    if ours.dropin is None:
        return
    owner = maybe_owner(ours.dropin)
    if owner is None:
        raise ConfigError(f"{instance.dropin} is not of bento-tor's making", hint="move it away, or rename it")
    if owner != state:
        raise ConfigError(
            f"this tor serves the box in {owner} already", hint=f"--state {owner}, or undo that one first: --undo"
        )


def _block(dropin: Path) -> bytes:
    return f"{_MARK_LINE}{include_line(dropin)}\n".encode()


def _check_relay(relay: RelayPart) -> None:
    found = _ORPORT.fullmatch(relay.orport)
    if not _NICKNAME.fullmatch(relay.nickname):
        raise ConfigError(f"{relay.nickname!r} is no nickname", hint="1 to 19 letters and digits")
    if found is None or not 0 < int(found[1]) < 65536:
        raise ConfigError(f"{relay.orport!r} is no ORPort", hint="PORT, ADDRESS:PORT or auto")
    if relay.contact and (not relay.contact.isprintable() or len(relay.contact) > MAX_CONTACT):
        raise ConfigError("the contact is no line of text", hint=f"at most {MAX_CONTACT} characters, no line break")
    if relay.bandwidth and not _BANDWIDTH.fullmatch(relay.bandwidth):
        raise ConfigError(f"{relay.bandwidth!r} is no bandwidth", hint="for example '10 MBytes': bytes each second")
    for fingerprint in relay.family:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ConfigError(f"{fingerprint!r} is no fingerprint of a relay", hint="40 hexadecimal digits")


def _exit(wanted: Wanted, own: Settings) -> _Exit:
    box = (f"accept {VIRTUAL_ADDRESS}:{wanted.exit_port}",) if wanted.exit_port is not None else ()
    stated = own.one("ExitRelay") or "auto"
    if wanted.relay is not None and not wanted.relay.exit and not box:
        return _Exit("0") if stated != "0" else _Exit()
    if not box and (wanted.relay is None or stated == "1"):
        return _Exit()
    if stated == "0":
        raise ConfigError(
            "the torrc says 'ExitRelay 0', and then tor heeds no exit policy",
            hint="take that line out: setup-relay itself writes a policy that accepts nothing but the box",
        )
    relay = None if stated == "1" else "1"
    if wanted.relay is not None:
        return _Exit(relay, box, reduced=True) if wanted.relay.exit else _Exit(relay, (*box, "reject *:*"))
    is_exit = stated == "1" or bool(own.all("ExitPolicy")) or own.one("ReducedExitPolicy") == "1"
    return _Exit(relay, box if is_exit else (*box, "reject *:*"))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_ENVIRONMENT.filters["quoted"] = _quoted
