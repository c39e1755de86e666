"""A box's folder on disk: who owns what in it, its lock, its listening socket, and whose the onion service is.

STATE/             0711  of who runs serve
STATE/keys/        0700  the onion service's key: the keeper's
STATE/box/         0700  the database: the box's own user's
STATE/box.sock     the listening socket
STATE/operator.sock  0600  takes orders from whoever runs serve
STATE/blocked      0600  destinations that the operator has blocked: blocks.py
STATE/onion.json   written by setup-relay: the relay's tor owns the onion service
STATE/lock         one box at a time
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import msgspec

from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.relay import SetUp
from bento_tor.errors import ConfigError

_RELAY_FILE = "relay.json"


class StateDir:
    """The folder, locked. Made by `open_state`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.keys = path / "keys"
        self.database_dir = path / "box"
        self._lock_fd = lock_fd

    @property
    def default_socket(self) -> Endpoint:
        """Where the box listens if nobody says otherwise."""
        return Endpoint.unix(self.path / "box.sock")

    @property
    def operator_socket(self) -> Path:
        """Where the operator's orders come in."""
        return self.path / "operator.sock"

    def close(self) -> None:
        """Let the next box in."""
        os.close(self._lock_fd)


def open_state(path: Path, *, box_uid: int | None) -> StateDir:
    """Make what is missing, and lock. Raises ConfigError where it cannot be used, or another box does."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o711)
        for name, uid in (("keys", None), ("box", box_uid)):
            folder = path / name
            folder.mkdir(exist_ok=True, mode=0o700)
            if uid is not None:
                os.chown(folder, uid, uid)
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as why:
        raise ConfigError(
            f"the state folder {path} cannot be used: {why.strerror}", hint="choose another one with --state"
        ) from why
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as why:
        os.close(fd)
        raise ConfigError(
            f"another box uses {path}", hint="end it first, or choose another folder with --state"
        ) from why
    return StateDir(path, fd)


def is_in_use(path: Path) -> bool:
    """Whether a box has the folder now. Raises ConfigError where nobody may look."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as why:
        raise ConfigError(f"the state folder {path} cannot be used: {why.strerror}") from why
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def onion_seed(state: Path) -> Path:
    """Where the onion service's key is kept."""
    return state / "keys" / "onion.seed"


def maybe_relay(state: Path) -> SetUp | None:
    """What setup-relay did for this box, if it did."""
    path = state / _RELAY_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=SetUp)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else str(why)
        raise ConfigError(f"{path} cannot be used: {reason}", hint="choose another folder: --state") from why


def write_relay(state: Path, record: SetUp) -> None:
    """Leave word for `serve`, and for the way back. Replaces the whole file at once."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
        temporary = state / f"{_RELAY_FILE}.new"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.rename(state / _RELAY_FILE)
    except OSError as why:
        raise ConfigError(f"cannot write into {state}: {why.strerror}", hint="choose another folder: --state") from why


def remove_relay(state: Path) -> None:
    """setup-relay has undone its work."""
    (state / _RELAY_FILE).unlink(missing_ok=True)


def listen(endpoint: Endpoint) -> socket.socket:
    """The listening socket. Raises ConfigError where the place is taken, or is not on this machine."""
    if endpoint.path is None:
        return _listen_tcp(endpoint)
    sock = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(endpoint.path)
        sock.bind(str(endpoint.path))
        # Whoever reaches the onion service may talk to the box; a local user gains nothing over that, and tor
        # runs as a user of its own.
        endpoint.path.chmod(0o666)
        sock.listen(128)
    except OSError as why:
        sock.close()
        raise ConfigError(f"cannot listen at {endpoint}: {why.strerror}") from why
    return sock


def listen_operator(path: Path) -> socket.socket:
    """The socket of orders: of who runs serve, and of nobody else. Raises ConfigError."""
    return listen_private(path)


def listen_private(path: Path) -> socket.socket:
    """A socket that who runs serve can reach, and nobody else. Raises ConfigError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        # Made under a mask that lets nobody else in, not changed afterwards: there is no moment between.
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.listen(8)
    except OSError as why:
        sock.close()
        raise ConfigError(f"cannot listen at {path}: {why.strerror or why}") from why
    return sock


def _listen_tcp(endpoint: Endpoint) -> socket.socket:
    # A box on a public address would take clients that no tor brings; 192.0.2.80 is the virtual address that an
    # exit relay's policy opens.
    if not (endpoint.host.startswith("127.") or endpoint.host == "192.0.2.80"):
        raise ConfigError(
            f"a box does not listen at {endpoint.host}",
            hint="use unix:PATH, 127.0.0.1:PORT or 192.0.2.80:PORT",
        )
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(128)
    except OSError as why:
        sock.close()
        raise ConfigError(f"cannot listen at {endpoint}: {why.strerror}") from why
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed box left behind; never one that somebody answers, nor another kind of file."""
    if not path.is_socket():
        return
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.settimeout(1.0)
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    except OSError:
        return
    finally:
        probe.close()
