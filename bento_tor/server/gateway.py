"""The keeper's side of the gate: whether a box has one, what it is told, and its end. The gate is bento_tor/gate."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from bento_tor.controller.endpoints import MAX_SOCKET_PATH_BYTES, Endpoint
from bento_tor.controller.services import Place
from bento_tor.egress.grants import Caps
from bento_tor.errors import ConfigError
from bento_tor.gate import process
from bento_tor.gate.gate import Settings
from bento_tor.gate.words import NAMES
from bento_tor.server.child import Neighbour
from bento_tor.server.settings import BoxConfig
from bento_tor.server.state import maybe_relay

# Tor passes through to sockets that it may connect to, and lists nothing.
_MODE = 0o711
_FOLDER = "gate"
_PLAIN = re.compile(r"[A-Za-z0-9_./+:@%~-]+")
_NAME_BYTES = 20


def open_gate(config: BoxConfig, *, state: Path, view: Path, uid: int | None) -> Neighbour | None:
    """Start the gate where the policy offers Tor routines: before there are threads, and before the box is forked.

    `state`: the box's folder, where tor finds it; `view`: the same as this process sees it. Raises ConfigError for what
    cannot be offered, TorError where the tor of `gate_control` cannot be used."""
    routines = config.policy.tor
    if not routines:
        return None
    if unknown := [name for name in routines if name not in NAMES]:
        raise ConfigError(
            f"the policy offers Tor routines that there are not: {', '.join(unknown)}",
            hint=f"there are {', '.join(NAMES)}",
        )
    if not config.gate_control:
        raise ConfigError(
            "the policy offers Tor routines, and no tor is named for them",
            hint="gate_control = ...: the control port of the box's own tor, never the relay's",
        )
    Endpoint.parse(config.gate_control)
    folder = view / _FOLDER
    _make(folder, state / _FOLDER, uid)
    settings = Settings(
        control=config.gate_control,
        routines=routines,
        folder=str(folder),
        shown=str(state / _FOLDER),
        tag=f"bento-gate-{hashlib.sha256(bytes(state)).hexdigest()[:16]}",
        hides=_hides(config, view),
        ceiling=Caps(connections=config.policy.connections, bytes_out=max(config.policy.egress_bytes, 1)),
    )
    return Neighbour(process.start(settings, uid=uid), "gate")


def _hides(config: BoxConfig, view: Path) -> bool:
    """Whether an onion service of this box keeps its place secret, on whichever tor: a guard of the gate's tor tells
    the place of all. Raises ConfigError where what is written down of them cannot be read."""
    record = maybe_relay(view)
    if record is not None and record.wanted.exit_port is None:
        return True  # with an exit port the consensus says where it is
    place = Place(view)
    others = [place.load(name) for name in place.names()]
    return (config.publish and not config.single_hop) or any(not service.single_hop for service in others)


def _make(folder: Path, shown: Path, uid: int | None) -> None:
    if len(bytes(shown)) + _NAME_BYTES > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{shown} is too long a path for sockets", hint="choose a shorter one with --state")
    if not _PLAIN.fullmatch(str(shown)):
        # It becomes part of a command to tor.
        raise ConfigError(f"{shown} has characters that tor would misread", hint="choose another folder with --state")
    try:
        folder.mkdir(mode=_MODE, exist_ok=True)
        folder.chmod(_MODE)
        if uid is not None:
            os.chown(folder, uid, uid)
        for left in folder.iterdir():
            if left.is_socket():
                left.unlink()  # of a gate that was killed
    except OSError as why:
        raise ConfigError(f"{shown} cannot hold the gate's sockets: {why.strerror}") from why
