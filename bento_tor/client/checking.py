"""A function's text looked over before it travels: all that a box, or its own run, would find fault with.

The text is parsed and compiled, never run, and that in a process of its own (bounded.py): it may be anybody's. What a
manifest may say, what `api` has and what an image holds is asked of those who own it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from bento_tor.client import reading
from bento_tor.client.bounded import GaveUp, bounded
from bento_tor.client.reading import Facts
from bento_tor.errors import ConfigError
from bento_tor.policy import manifest as manifests
from bento_tor.policy.document import Policy, misfits
from bento_tor.policy.manifest import Manifest
from bento_tor.sandbox import offered

# More than that nobody reads.
_MAX_FINDINGS = 100
_MAX_TEXT = 400


class Finding(msgspec.Struct, frozen=True, order=True):
    """What is wrong (`error`) or worth knowing (`note`). `line`: 0 where it is of the file as a whole."""

    line: int
    grade: Literal["error", "note"]
    text: str


class Checked(msgspec.Struct, frozen=True):
    """The manifest, where it can be read, and every finding, by line."""

    maybe_manifest: Manifest | None
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.grade == "note" for finding in self.findings)


class ImageFacts(msgspec.Struct, frozen=True):
    """What a function finds in an image. `programs`: whether it may start any."""

    packages: tuple[str, ...]
    can_import: Callable[[str], bool]
    programs: bool = False


class Surroundings(msgspec.Struct, frozen=True):
    """Where it is to run. `image_of` gives what an image of that name holds, None where that is not known here.

    `maybe_policy`: of a box, to be held against the manifest."""

    image_of: Callable[[str], ImageFacts | None]
    maybe_policy: Policy | None = None


def check(name: str, text: str, around: Surroundings) -> Checked:
    """Everything that is found at once. Takes a bounded time, and runs nothing of the text."""
    try:
        return msgspec.json.decode(bounded(lambda: msgspec.json.encode(_check(name, text, around))), type=Checked)
    except GaveUp:
        words = "cannot be checked: that takes more time or memory than a function is worth"
        return Checked(None, (Finding(0, "error", words),))


def _check(name: str, text: str, around: Surroundings) -> Checked:
    found = sorted(set(_manifest_faults(text)))
    manifest = None if found else manifests.read(text)
    maybe_facts, faults = _read(text)
    found += faults
    if maybe_facts is not None:
        found += _entry_faults(name, text, maybe_facts, manifest)
        if manifest is not None:
            found += _use_faults(maybe_facts, manifest, _line_of_block(text))
    if manifest is not None:
        found += _image_faults(text, manifest, maybe_facts, around)
        found += _policy_faults(text, manifest, around)
    found = sorted({Finding(each.line, each.grade, f"{each.text:.{_MAX_TEXT}}") for each in found})
    if len(found) > _MAX_FINDINGS:
        more = len(found) - _MAX_FINDINGS
        worst = sorted(found, key=lambda finding: (finding.grade, finding.line))[:_MAX_FINDINGS]
        found = [*sorted(worst), Finding(0, "error", f"and {more} more findings")]
    return Checked(manifest, tuple(found))


# --- the text -------------------------------------------------------------------------------------------------------


def _read(text: str) -> tuple[Facts | None, list[Finding]]:
    """What the tree tells, and what the compiler says of it."""
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        return None, [Finding(line, "error", "is not Python: there is a null byte in it")]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            tree = ast.parse(text)
            compile(text, "function.py", "exec", dont_inherit=True)
        except SyntaxError as why:
            return None, [Finding(why.lineno or 0, "error", f"is not Python: {why.msg}")]
        except (ValueError, RecursionError, MemoryError) as why:
            reason = str(why) or "it is nested too deeply, or takes too much memory"
            return None, [Finding(0, "error", f"is not Python that can be compiled: {reason}")]
    notes = [Finding(warning.lineno, "note", f"the compiler warns: {warning.message}") for warning in warned]
    return reading.read(tree), notes


def _entry_faults(name: str, text: str, facts: Facts, manifest: Manifest | None) -> Iterator[Finding]:
    """Of the call that a run without --call makes."""
    entry = manifest.entry if manifest is not None else ""
    if not entry:
        entry = name if name in facts.functions else ""
    if not entry and len(facts.functions) != 1:
        which = 'which to run is said by the manifest\'s entry = "...", or --call'
        words = f"defines {len(facts.functions)} functions: {which}" if facts.functions else "defines no function"
        yield Finding(0, "error", words)
        return
    entry = entry or next(iter(facts.functions))
    if entry not in facts.names and not facts.star:
        yield Finding(_line_of_key(text, "entry"), "error", f"the entry {entry!r} is not defined in it")
        return
    definition = facts.functions.get(entry)
    if definition is None:
        line = facts.names.get(entry, 0)
        if entry in facts.async_functions:
            yield Finding(line, "error", f"the entry {entry!r} is async: a box calls it, and nothing would await it")
        elif entry in facts.constants:
            yield Finding(line, "error", f"the entry {entry!r} cannot be called: it is no function")
        return
    if definition.is_generator:
        words = f"the entry {entry!r} has a yield: calling it runs nothing of it; api.send sends a message"
        yield Finding(definition.line, "error", words)
    if definition.needs_names:
        words = f"the entry {entry!r} needs {', '.join(definition.needs_names)} by name: only --call can give that"
        yield Finding(definition.line, "note", words)


def _use_faults(facts: Facts, manifest: Manifest, block: int) -> Iterator[Finding]:
    """What it uses of `api`."""
    if facts.own_api:
        yield Finding(facts.own_api, "note", "gives the name api to something else: what it uses of api is not checked")
        return
    known = offered.verbs()
    where = f"the manifest (line {block})" if block else "a manifest"
    for line, name in facts.uses:
        top, _, rest = name.partition(".")
        verb = known.get(top)
        if verb is None:
            yield Finding(line, "error", _no_such("api", top, tuple(word for word in known if "." not in word)))
        elif verb.key and not offered.is_asked(manifest, verb.key):
            yield Finding(line, "error", f"api.{top} needs the key {verb.key!r} in {where}")
        elif rest and any(word.startswith(f"{top}.") for word in known) and name not in known:
            words = tuple(word.partition(".")[2] for word in known if word.startswith(f"{top}."))
            yield Finding(line, "error", _no_such(f"api.{top}", rest, words))
        elif top == "tor" and rest and rest not in manifest.tor:
            yield Finding(line, "error", f"api.tor.{rest} needs {rest!r} in the list 'tor' of {where}")


@functools.cache
def _no_such(what: str, word: str, words: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word[:64], words, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{what} has no {word!r:.80}{meant}; it has {', '.join(sorted(words))}"


# --- the manifest ---------------------------------------------------------------------------------------------------


def _manifest_faults(text: str) -> Iterator[Finding]:
    """Why the client would not take it: each key that it would not take, not only the first."""
    try:
        manifests.read(text)
        return
    except ConfigError as error:
        first = error.message
    try:
        block = manifests.maybe_block(text)
        table = tomllib.loads(block.text) if block is not None else {}
    except ConfigError as error:
        starts = [number for number, line in enumerate(text.split("\n"), 1) if line.rstrip("\r") == "# /// script"]
        yield Finding(starts[0] if starts else 0, "error", error.message)
        return
    except (ValueError, RecursionError):
        place = re.search(r" \(line (\d+)\)$", first)
        line = int(place[1]) if place else _line_of_block(text)
        yield Finding(line, "error", first[: place.start()] if place else first)
        return
    yield from list(_key_faults(text, table)) or [Finding(_line_of_block(text), "error", first)]


def _key_faults(text: str, table: dict[str, Any]) -> Iterator[Finding]:
    """Every key by itself, as `manifest.read` takes them all."""
    tool = table.get("tool", {})
    bento = tool.get("bento", {}) if isinstance(tool, dict) else {}
    parts: list[dict[str, Any]] = []
    if "dependencies" in table:
        parts.append({"dependencies": table["dependencies"]})
    if isinstance(bento, dict):
        parts += [{"tool": {"bento": {key: value}}} for key, value in bento.items()]
    for part in parts:
        key = next(iter(part["tool"]["bento"])) if "tool" in part else "dependencies"
        try:
            manifests.from_table(part)
        except ConfigError as error:
            yield Finding(_line_of_key(text, key), "error", error.message)


def _line_of_block(text: str) -> int:
    block = manifests.maybe_block(text)
    return block.line if block is not None else 0


def _line_of_key(text: str, key: str) -> int:
    """Where the manifest says it; the block's own line where it says so in another way than everybody."""
    block = manifests.maybe_block(text)
    if block is None:
        return 0
    wanted = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    lines = (number for number, line in enumerate(block.text.split("\n"), block.line + 1) if wanted.match(line))
    return next(lines, block.line)


# --- where it is to run ---------------------------------------------------------------------------------------------


def _image_faults(text: str, manifest: Manifest, maybe_facts: Facts | None, around: Surroundings) -> Iterator[Finding]:
    for routine in sorted(set(manifest.tor) - offered.routines()):
        has = ", ".join(sorted(offered.routines()))
        yield Finding(_line_of_key(text, "tor"), "error", f"there is no Tor routine {routine!r}; there are {has}")
    if manifest.hosts and manifest.egress == "none":
        yield Finding(_line_of_key(text, "hosts"), "note", "names hosts, and asks for no egress to reach them by")
    maybe_image = around.image_of(manifest.image)
    if maybe_image is None:
        words = f"the image {manifest.image!r} is not on this machine: what it imports and depends on is not checked"
        yield Finding(_line_of_key(text, "image"), "note", words)
        return
    for package in manifest.packages:
        if package not in maybe_image.packages:
            has = ", ".join(maybe_image.packages) or "none"
            words = f"depends on {package}, which the image {manifest.image!r} lacks; it has {has}"
            yield Finding(_line_of_key(text, "dependencies"), "error", words)
    for imported in maybe_facts.imports if maybe_facts is not None else ():
        if not imported.module:
            words = "imports from beside itself: a function is one file, and travels alone"
            yield Finding(imported.line, "error", words)
        elif not maybe_image.can_import(imported.module):
            grade: Literal["error", "note"] = "note" if imported.optional else "error"
            words = f"imports {imported.module}, which the image {manifest.image!r} lacks"
            yield Finding(imported.line, grade, words)
        elif imported.module == "subprocess" and not maybe_image.programs:
            words = f"imports subprocess: in the image {manifest.image!r} a function can start no programs"
            yield Finding(imported.line, "note", words)


def _policy_faults(text: str, manifest: Manifest, around: Surroundings) -> Iterator[Finding]:
    policy = around.maybe_policy
    if policy is None:
        return
    if manifest.image not in policy.found:
        # Nobody has told what is in it: `_image_faults` has the word.
        manifest = msgspec.structs.replace(manifest, packages=())
    for reason in misfits(manifest, policy):
        yield Finding(_line_of_reason(text, reason, manifest, policy), "error", f"does not fit the policy: it {reason}")


def _line_of_reason(text: str, reason: str, manifest: Manifest, policy: Policy) -> int:
    """Of the key that would have to go for it to go. Last ones first: what packages there are depends on the image."""
    default = msgspec.structs.asdict(Manifest())
    for key in reversed(offered.asked(manifest)):
        if reason not in misfits(msgspec.structs.replace(manifest, **{key: default[key]}), policy):
            return _line_of_key(text, "dependencies" if key == "packages" else key)
    return _line_of_block(text)
