"""The keeper's side of the courier: whether a box has one, what it is told, and its end. It is bento_tor/courier."""

from __future__ import annotations

from bento_tor.controller.endpoints import Endpoint
from bento_tor.courier import process
from bento_tor.courier.courier import Settings
from bento_tor.courier.errand import Reach
from bento_tor.errors import ConfigError
from bento_tor.sandbox.seccomp import compile_parser
from bento_tor.server.child import Neighbour
from bento_tor.server.settings import BoxConfig


def open_courier(config: BoxConfig, maybe_reach: Reach | None, *, uid: int | None) -> Neighbour | None:
    """Start it where the policy lets functions use other boxes: before there are threads, and before the box is forked.

    Raises ConfigError where there is no tor for it, SandboxError where its workers cannot be confined."""
    policy = config.policy
    if not policy.boxes or maybe_reach is None:
        return None
    if not config.socks:
        raise ConfigError(
            "the policy lets functions use other boxes, and no tor is named for that",
            hint="socks = ...: the SOCKS port of the box's own tor, never the relay's",
        )
    endpoint = Endpoint.parse(config.socks)
    settings = Settings(
        socks=str(endpoint.path) if endpoint.path is not None else (endpoint.host, endpoint.port),
        boxes=policy.boxes,
        visits=policy.box_visits,
        carried_bytes=max(policy.box_bytes, 1),
    )
    return Neighbour(process.start(settings, maybe_reach, compile_parser(), uid=uid), "courier")
