"""The file that `bento-tor policy init` writes: every setting with its meaning and its default, made from the code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from bento_tor.policy.document import FOUND, Policy
from bento_tor.policy.limits import Limits

_HEAD = """\
# What this box offers to anybody's function. Every line below is the default: take the # away to change one.
# Check it with 'bento-tor policy check FILE'; serve with it by 'bento-tor serve --policy FILE', or by a line
# policy_file = "FILE" in the box's settings. Sizes are bytes; a size of 0 means that there is none of it.
"""


def render() -> str:
    """The text, in TOML."""
    lines = [_HEAD]
    fields = [name for name in Policy.__struct_fields__ if name not in (*FOUND, "limits")]
    lines += _settings(Policy(), Policy, fields)
    lines.append("# The ceiling of one session.\n[limits]\n")
    lines += _settings(Limits(), Limits, list(Limits.__struct_fields__))
    return "\n".join(lines)


def _settings(value: Any, form: type[msgspec.Struct], names: list[str]) -> Iterator[str]:
    meanings = dict(re.findall(r"^([a-z_]+) {2,}(.+)$", inspect.getdoc(form) or "", re.MULTILINE))
    for name in names:
        yield f"# {meanings.get(name, '')}\n#{name} = {json.dumps(getattr(value, name))}\n"
