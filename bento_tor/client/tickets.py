"""Tokens as people pass them on: `bento1:<box>:<role>:<token>`. With the box's name in it, nobody can re-bind one."""

from __future__ import annotations

import base64
import binascii
from typing import Literal, get_args

import msgspec

from bento_tor.errors import ConfigError
from bento_tor.protocol.messages import TOKEN_BYTES

Role = Literal["invocation", "session", "shutdown"]
# Of a drop box whose file is sealed under the secret; and of one that a function fills, for the key whose private half
# the secret is.
DROPBOX, DROPBOX_KEY = "dropbox", "dropbox-key"
_DROP_HINT = "it looks like bento1:<box>:dropbox:<token and secret>"


class Ticket(msgspec.Struct, frozen=True):
    """A token, what it is for, and the box that it opens something at."""

    box: str
    role: Role
    token: bytes

    def __str__(self) -> str:
        return f"bento1:{self.box}:{self.role}:{encode_secret(self.token)}"

    def __repr__(self) -> str:
        return f"Ticket({self.box}, {self.role}, ...)"  # a token never reaches a log


class DropTicket(msgspec.Struct, frozen=True):
    """What opens a drop box: its place, its invocation token, and the secret that its file is sealed under, which no
    box ever hears. `to_key`: it is an X25519 private key; a function seals to its public half (`sealing.unwrap`)."""

    box: str
    token: bytes
    secret: bytes
    to_key: bool = False

    def __str__(self) -> str:
        word = DROPBOX_KEY if self.to_key else DROPBOX
        return f"bento1:{self.box}:{word}:{encode_secret(self.token + self.secret)}"

    def __repr__(self) -> str:
        return f"DropTicket({self.box}, ...)"


def parse_drop(text: str) -> DropTicket:
    """Raises ConfigError where the text is no drop box's ticket."""
    box, word, secret = split(text, hint=_DROP_HINT)
    if word not in (DROPBOX, DROPBOX_KEY) or len(secret) != 2 * TOKEN_BYTES:
        raise ConfigError("this is not the ticket of a drop box, or it is damaged", hint=_DROP_HINT)
    return DropTicket(box, secret[:TOKEN_BYTES], secret[TOKEN_BYTES:], to_key=word == DROPBOX_KEY)


def parse(text: str, *, maybe_box: str | None = None, role: Role = "session") -> Ticket:
    """Raises ConfigError where the text is no ticket.

    The token alone will do where the box is told apart: `maybe_box`, and what it is for: `role`."""
    hint = "a ticket looks like bento1:<box>:<role>:<token>"
    text = text.strip()
    if maybe_box is not None and ":" not in text:
        text = f"bento1:{maybe_box}:{role}:{text}"
    box, word, token = split(text, hint=f"{hint}; a token alone needs its --box")
    for known in get_args(Role):
        if word == known and len(token) == TOKEN_BYTES:
            return Ticket(box, known, token)
    raise ConfigError("the role or the token in this ticket is damaged", hint=hint)


def split(text: str, *, hint: str) -> tuple[str, str, bytes]:
    """The box, the word, and the secret bytes. Raises ConfigError."""
    parts = text.strip().split(":")
    if len(parts) < 4 or parts[0] != "bento1":
        raise ConfigError("this is not a ticket", hint=hint)
    encoded = parts[-1]
    try:
        secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as why:
        raise ConfigError("the token in this ticket is damaged", hint=hint) from why
    return ":".join(parts[1:-2]), parts[-2], secret


def encode_secret(secret: bytes) -> str:
    """As it stands in a ticket."""
    return base64.urlsafe_b64encode(secret).decode().rstrip("=")
