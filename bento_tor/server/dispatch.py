"""The keeper's side of the courier: whether a box has one, what it is told, and its end. It is bento_tor/courier."""

from __future__ import annotations

import socket

from bento_tor.controller.endpoints import Endpoint
from bento_tor.courier import process
from bento_tor.courier.courier import Settings
from bento_tor.courier.errand import Reach
from bento_tor.egress.link import KeeperLine
from bento_tor.errors import ConfigError
from bento_tor.sandbox.seccomp import compile_parser
from bento_tor.server.child import end_child
from bento_tor.server.settings import BoxConfig

_STOP_S = 10


class Dispatch:
    """The courier of one box. `line`: tells it which sessions there are. Call `stop` at the end."""

    def __init__(self, started: process.Started) -> None:
        self.line = KeeperLine(started.keeper)
        self.box: socket.socket = started.box
        self._pid = started.pid

    def leave_to_box(self) -> socket.socket:
        """In the box's process, after the fork: its line to the courier; the keeper's is none of its business."""
        self.line.close()
        return self.box

    def stop(self) -> None:
        """Nothing is carried any more."""
        self.line.close()
        end_child(self._pid, "courier", within_s=_STOP_S)


def open_courier(config: BoxConfig, maybe_reach: Reach | None, *, uid: int | None) -> Dispatch | None:
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
    return Dispatch(process.start(settings, maybe_reach, compile_parser(), uid=uid))
