"""Which tor a box with these settings needs, and how that tor is: for `bento-tor doctor`."""

from __future__ import annotations

from bento_tor.controller import checks
from bento_tor.controller.checks import Place
from bento_tor.controller.connection import USUAL_PLACES, connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.findings import Finding
from bento_tor.controller.relay import SetUp
from bento_tor.errors import TorError
from bento_tor.server.settings import BoxConfig


def needed(config: BoxConfig, maybe_record: SetUp | None, control: str, *, by_config: bool) -> bool:
    """Whether somebody said that there is a tor: by name, by setup-relay, or in the box's settings (`by_config`)."""
    by_settings = config.publish or bool(config.control or config.relay) or "exit" in config.policy.egress
    return bool(control) or maybe_record is not None or (by_config and by_settings)


def is_there() -> bool:
    """Whether something is at one of the usual places, whether or not it lets us in."""
    for place in USUAL_PLACES:
        try:
            connect(place, timeout_s=2.0).close()
        except TorError as why:
            if "nothing there" in why.message or "no answer" in why.message:
                continue
        return True
    return False


def look(config: BoxConfig, maybe_record: SetUp | None, control: str) -> tuple[Finding, ...]:
    """The tor of the onion service; and the relay whose exit policy is obeyed, where that is another one."""
    first = control or (maybe_record.control if maybe_record is not None else config.control)
    exits = "exit" in config.policy.egress
    apart = bool(config.relay) and config.relay != first
    found = checks.check(Place(_maybe(first), maybe_record, exits and not apart))
    return (*found, *checks.check(Place(_maybe(config.relay), None, exits))) if apart else found


def _maybe(text: str) -> Endpoint | None:
    return Endpoint.parse(text) if text else None
