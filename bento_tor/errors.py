"""The exception tree. One class for each failure that somebody catches apart.

    BentoError
        ConfigError        a setting, file or argument that cannot be used
        ProtocolError      bytes or messages out of order
            LocalProtocolError    our own mistake: a bug here
            RemoteProtocolError   the peer's: it gets one Refused, then the connection closes
        ConnectError       the box, or the way to it, cannot be reached
        TorError           tor is absent, refuses us, or failed
            TorTimeout     tor did not bootstrap or publish in time
        SandboxError       the jail itself is broken (what a function does is an Outcome, not an error)
        Refused            the box said no
        FunctionFailed     the function ran and did not return

The exit codes are those of docs/cli.md. Owns no printing: `cli.main` turns these into words, once.
"""

from __future__ import annotations


class BentoError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str = "", *, hint: str = "", exit_code: int | None = None) -> None:
        """`message` says what happened, `hint` what to do next; neither ends in a traceback."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__(self.message)


class ConfigError(BentoError):
    """The configuration cannot be used."""

    exit_code = 3


class ProtocolError(BentoError):
    """The two sides disagree about the protocol."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: this is a bug in bento-tor."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""

    exit_code = 6

    def __init__(self, message: str = "", *, hint: str = "", code: str = "protocol") -> None:
        """`code` is the word of the one Refused that a box answers with."""
        super().__init__(message, hint=hint)
        self.code = code


class ConnectError(BentoError):
    """The box cannot be reached."""

    exit_code = 6


class TorError(BentoError):
    """Tor cannot be used."""

    exit_code = 4


class TorTimeout(TorError):
    """Tor was not ready in time."""

    exit_code = 5


class SandboxError(BentoError):
    """The sandbox cannot be set up on this machine."""


class Refused(BentoError):
    """The box refused."""

    exit_code = 7

    def __init__(self, message: str = "", *, hint: str = "", code: str = "refused") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class FunctionFailed(BentoError):
    """The function did not return."""

    exit_code = 8
