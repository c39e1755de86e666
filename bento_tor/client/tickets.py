"""Tokens as people pass them on: `bento1:<box>:<role>:<token>`. With the box's name in it, nobody can re-bind one."""

from __future__ import annotations

import base64
import binascii
from typing import Literal, get_args

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.protocol.messages import TOKEN_BYTES

Role = Literal["invocation", "session", "shutdown"]


class Ticket(msgspec.Struct, frozen=True):
    """A token, what it is for, and the box that it opens something at."""

    box: str
    role: Role
    token: bytes

    def __str__(self) -> str:
        token = base64.urlsafe_b64encode(self.token).decode().rstrip("=")
        return f"bento1:{self.box}:{self.role}:{token}"

    def __repr__(self) -> str:
        return f"Ticket({self.box}, {self.role}, ...)"  # a token never reaches a log


def parse(text: str, *, maybe_box: str | None = None, role: Role = "session") -> Ticket:
    """Raises ConfigError where the text is no ticket.

    The token alone will do where the box is told apart: `maybe_box`, and what it is for: `role`."""
    hint = "a ticket looks like bento1:<box>:<role>:<token>"
    text = text.strip()
    if maybe_box is not None and ":" not in text:
        text = f"bento1:{maybe_box}:{role}:{text}"
    parts = text.split(":")
    if len(parts) < 4 or parts[0] != "bento1":
        raise ConfigError("this is not a ticket", hint=f"{hint}; a token alone needs its --box")
    box, word, encoded = ":".join(parts[1:-2]), parts[-2], parts[-1]
    try:
        token = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as why:
        raise ConfigError("the token in this ticket is damaged", hint=hint) from why
    for known in get_args(Role):
        if word == known and len(token) == TOKEN_BYTES:
            return Ticket(box, known, token)
    raise ConfigError("the role or the token in this ticket is damaged", hint=hint)
