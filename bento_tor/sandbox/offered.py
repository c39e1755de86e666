"""What `api` has, and what a function's manifest must say for it: read from the texts that make it in the sandbox."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bento_tor.policy.manifest import Manifest
from bento_tor.sandbox import driver, keeping, torgate

# Made in the sandbox by a text of their own; their verbs stand behind a second dot.
_PARTS = {"store": keeping.Store, "tor": torgate.Tor}
# Names that need a key which is called otherwise, or is not refused but answered with nothing.
_KEYS = {"connect": "egress", "host": "host"}


@dataclass(frozen=True, slots=True)
class Verb:
    """A name of `api`. `key`: what the manifest must say for it, or nothing; `signature` and `text`: for people."""

    name: str
    key: str = ""
    signature: str = ""
    text: str = ""


def verbs() -> dict[str, Verb]:
    """By name, also those with a second dot (`store.put`)."""
    found = [Verb("args", text="The call's positional arguments, as a list."), *_of_class(driver.Api, "")]
    for name in driver.ASKED_FOR:
        key = name if name in Manifest.__struct_fields__ else ""
        found += [Verb(name, key), *_of_class(_PARTS.get(name, object), f"{name}.", key)]
    return {verb.name: verb for verb in found}


def routines() -> frozenset[str]:
    """What a manifest may name in `tor`."""
    return frozenset(verb.name.removeprefix("tor.") for verb in _of_class(torgate.Tor, "tor."))


def is_asked(manifest: Manifest, key: str) -> bool:
    """Whether the manifest asks for something by this key."""
    return bool(key) and getattr(manifest, key) not in (Manifest.__struct_defaults__[_place(key)], "none")


def asked(manifest: Manifest) -> dict[str, object]:
    """What it asks for, beyond what every function has: its keys that are not at their defaults."""
    fields = msgspec.structs.asdict(manifest)
    default = msgspec.structs.asdict(Manifest())
    return {name: value for name, value in fields.items() if name != "entry" and value != default[name]}


def _place(key: str) -> int:
    return Manifest.__struct_fields__.index(key)


def _of_class(kind: type, prefix: str, key: str = "") -> Iterator[Verb]:
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if inspect.isfunction(value):
            signature = str(inspect.signature(value)).replace("self, ", "").replace("self", "")
            text = inspect.getdoc(value) or ""
        else:  # an exception that it raises
            signature, text = "", inspect.getdoc(value) or ""
        yield Verb(prefix + name, key or _KEYS.get(name, "") if not prefix else key, signature, text)
