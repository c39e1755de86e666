"""The exit policy as the running tor states it: what its descriptor will say, not what a torrc says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bento_tor.errors import TorError, TorTimeout

if TYPE_CHECKING:
    from bento_tor.controller.tor import Tor

_POLL_S = 0.25


def maybe_exit_policy(tor: Tor, *, timeout_s: float = 10.0) -> str | None:
    """The text of `exit-policy/full`, a rule a line; None while tor rebuilds its descriptor, or has none to
    rebuild.

    None means unknown, never empty: to take it for "accepts nothing" or "accepts all" would be wrong either
    way."""
    reply = tor.msg("GETINFO exit-policy/full", timeout_s=timeout_s)
    if reply.code == "551":
        return None
    if reply.code == "552":
        raise TorError(f"the tor at {tor.endpoint} is no relay: it has no exit policy", hint="give it an ORPort")
    if not reply.ok:
        raise TorError(f"tor does not state its exit policy: {reply.lines[-1]} ({reply.code})")
    return reply.lines[0].removeprefix("exit-policy/full=").strip()


def exit_policy(tor: Tor, *, timeout_s: float = 30.0) -> str:
    """The same, waited for. Raises TorTimeout where tor still does not know it after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while (text := maybe_exit_policy(tor)) is None:
        if time.monotonic() > deadline:
            message = f"tor at {tor.endpoint} did not state its exit policy within {timeout_s:g} s"
            raise TorTimeout(message, hint="is it a relay (ORPort), and can it learn its own address?")
        time.sleep(_POLL_S)
    return text
