"""What a look at a tor has found, as a value."""

from __future__ import annotations

from typing import Literal

import msgspec

Grade = Literal["ok", "warn", "no"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `no`: a box cannot work so, or is in danger; `warn`: the operator should know."""

    about: str
    grade: Grade
    words: str
    hint: str = ""
