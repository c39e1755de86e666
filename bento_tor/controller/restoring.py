"""A backup's way back onto a machine: every file in its place with owner and mode, nothing overwritten, and the proof
that relay and services are the same as before, given by a tor that reads the keys with its network off.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from bento_tor.controller import onion
from bento_tor.controller.backup import Backup, Kept, is_onion_seed
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import launch
from bento_tor.errors import ConfigError, TorError

_PATIENCE_S = 60.0
_POLL_S = 0.1
_PROOF = ".bento-proof-"
# What tor makes from the keys.
_STATED = frozenset({"hostname", "fingerprint", "fingerprint-ed25519"})


@dataclass(frozen=True)
class Restored:
    """What was put back and proved: the relay's fingerprint (empty: no relay) and the onion addresses."""

    files: int
    fingerprint: str
    onions: tuple[str, ...]


def restore(backup: Backup, *, state: Path | None, tor_data: Path | None, policy: Path | None, owner: str) -> Restored:
    """Put the files back, `tor`'s for the user `owner` (empty: whoever runs this), and prove that relay and services
    are the same.

    A root that is None is left out. Raises ConfigError, with nothing written, where another file is in the place of
    one; TorError where tor does not find the same keys."""
    folders = {"tor": tor_data, "state": state, "policy": policy}
    wanted = [(kept, folder) for kept in backup.files if (folder := folders.get(kept.root)) is not None]
    if not wanted:
        raise ConfigError("nothing of this backup is wanted", hint="name --state, --tor-data or --config-to")
    for kept, folder in wanted:
        _check_place(kept, folder)
    ids = _ids(owner)
    if tor_data is not None:
        _check_alone(tor_data)
    for kept, folder in wanted:
        _write(kept, folder, ids if kept.root == "tor" else None)
    fingerprint, found = _prove(backup, tor_data, owner) if tor_data is not None else ("", set[str]())
    found |= {_seed_address(folder / kept.path) for kept, folder in wanted if is_onion_seed(kept)}
    here = {kept.root for kept, _ in wanted}
    missing = {address for place, address in backup.onions.items() if place.partition("/")[0] in here} - found
    if missing or (tor_data is not None and fingerprint != backup.fingerprint):
        raise TorError(
            f"what was restored is not what was backed up: {', '.join(sorted(missing)) or 'the fingerprint'}"
        )
    return Restored(len(wanted), fingerprint, tuple(sorted(found)))


def _seed_address(path: Path) -> str:
    return onion.onion_address(onion.load_seed(path))


# --- writing --------------------------------------------------------------------------------------------------------


def _check_place(kept: Kept, folder: Path) -> None:
    """The file says where it goes: never out of its folder, and over nothing else. Raises ConfigError."""
    path = PurePosixPath(kept.path)
    # No quotes or line breaks either: names of services become part of a torrc that tor reads as root.
    plain = kept.path.isprintable() and not any(char in kept.path for char in '"\\')
    if path.is_absolute() or ".." in path.parts or not path.parts or not plain:
        raise ConfigError(f"the backup names {kept.path!r}, which is no place for a file")
    target = folder / path
    if target.is_symlink() or any(above.is_symlink() for above in target.parents if above.is_relative_to(folder)):
        raise ConfigError(f"{target} is a link, or behind one", hint="restore into an empty folder")
    if target.exists() and not (target.is_file() and target.read_bytes() == kept.content):
        raise ConfigError(
            f"another {target} is there already", hint="move it away, or restore into another folder: nothing is lost"
        )


def _write(kept: Kept, folder: Path, ids: tuple[int, int] | None) -> None:
    """By descriptors only: tor's user owns these folders, and must not be able to lead root's writing elsewhere."""
    *above, name = PurePosixPath(kept.path).parts
    mode = 0o711 if kept.root == "state" else 0o700  # tor must reach the box's socket
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        inside = _open_folder(None, str(folder), ids, mode)
        for part in above:
            outside, inside = inside, _open_folder(inside, part, ids, 0o700)
            os.close(outside)
        try:
            _write_file(inside, name, kept, ids)
        finally:
            os.close(inside)
    except OSError as why:
        raise ConfigError(f"cannot write {folder / kept.path}: {why.strerror}") from why


def _open_folder(maybe_above: int | None, name: str, ids: tuple[int, int] | None, mode: int) -> int:
    made = True
    try:
        os.mkdir(name, mode, dir_fd=maybe_above)
    except FileExistsError:
        made = False
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=maybe_above)
    if made and ids is not None:
        os.fchown(fd, *ids)
    return fd


def _write_file(inside: int, name: str, kept: Kept, ids: tuple[int, int] | None) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=inside)
    except FileExistsError:
        return  # the same, as `_check_place` has seen
    with os.fdopen(fd, "wb") as file:
        file.write(kept.content)
        if ids is not None:
            os.fchown(fd, *ids)
        os.fchmod(fd, kept.mode & 0o755)
        file.flush()
        os.fsync(fd)
    os.fsync(inside)


def _ids(owner: str) -> tuple[int, int] | None:
    if not owner:
        return None
    try:
        found = pwd.getpwnam(owner)
    except KeyError as why:
        raise ConfigError(f"there is no user {owner!r}", hint="tor's own user, debian-tor on Debian: --owner") from why
    return found.pw_uid, found.pw_gid


def _check_alone(tor_data: Path) -> None:
    """Raises ConfigError where a tor runs on that folder: it holds a lock there."""
    path = tor_data / "lock"
    if not path.is_file():
        return
    with path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as why:
            raise ConfigError(f"a tor runs on {tor_data}", hint="stop it first") from why


# --- proving --------------------------------------------------------------------------------------------------------


def _prove(backup: Backup, tor_data: Path, owner: str) -> tuple[str, set[str]]:
    """Have a tor without a network read a copy of the keys that were restored: its fingerprint, and the addresses of
    its services. It makes both from the secret keys; so the copy leaves out the files that state them."""
    # Beside the folder, where root writes: in it tor's user could change what is there.
    place = tor_data.parent if os.geteuid() == 0 else tor_data
    _sweep(place)
    proof = Path(tempfile.mkdtemp(prefix=_PROOF, dir=place))
    try:
        with _held(proof):
            proof.chmod(0o711)
            return _ask_tor(backup, tor_data, proof, owner)
    finally:
        shutil.rmtree(proof)


def _sweep(place: Path) -> None:
    """Copies of keys that a killed run has left."""
    for left in place.glob(f"{_PROOF}*"):
        try:
            with _held(left):
                shutil.rmtree(left)
        except OSError:
            continue  # another run is at it, or it is nothing of ours


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """As long as a process does. Raises OSError where another one does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _ask_tor(backup: Backup, tor_data: Path, proof: Path, owner: str) -> tuple[str, set[str]]:
    data, ours = proof / "data", [kept for kept in backup.files if kept.root == "tor"]
    for kept in ours:
        if PurePosixPath(kept.path).name not in _STATED:
            restored = msgspec.structs.replace(kept, content=_read_back(tor_data, kept))
            _write(restored, data, _ids(owner))
    services = sorted({PurePosixPath(kept.path).parts[0] for kept in ours if kept.path.endswith("/hostname")})
    lines = [f'DataDirectory "{data}"', "SocksPort 0", "DisableNetwork 1", "ShutdownWaitLength 0", "Log notice stdout"]
    lines += [f"__OwningControllerProcess {os.getpid()}"]  # a killed run leaves no tor that has these keys
    lines += ["ORPort 9", "ExitRelay 0"] if backup.fingerprint else []
    lines += [f"User {owner}"] if owner and os.geteuid() == 0 else []
    for name in services:
        lines += [f'HiddenServiceDir "{data / name}"', "HiddenServicePort 9 127.0.0.1:9"]
    (proof / "torrc").write_text("\n".join([*lines, ""]), encoding="utf-8")
    stated = [data / name / "hostname" for name in services]
    stated += [data / "fingerprint"] if backup.fingerprint else []
    _run_until(stated, proof)
    fingerprint = (data / "fingerprint").read_text("ascii").split()[1] if backup.fingerprint else ""
    return fingerprint, {(data / name / "hostname").read_text("ascii").strip() for name in services}


def _read_back(folder: Path, kept: Kept) -> bytes:
    """What was restored there. By descriptors only: what is read is given to tor's user, whose folder it is, and who
    could have made a link of it to a file of root's. Raises ConfigError."""
    *above, name = PurePosixPath(kept.path).parts
    with ExitStack() as stack:
        try:
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, inside)
            for part in above:
                inside = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)
                stack.callback(os.close, inside)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
            with os.fdopen(fd, "rb") as file:
                content = file.read(len(kept.content) + 1)
        except OSError as why:
            raise ConfigError(f"{folder / kept.path} was changed while it was restored: {why.strerror}") from why
    return content


def _run_until(files: list[Path], proof: Path) -> None:
    """Run tor on that torrc until it has written all of these. It opens no port, not even for control. Raises
    TorError."""
    nowhere = Endpoint.unix(proof / "none")
    launched = launch("proof", proof / "torrc", control=nowhere, log=proof / "log", defaults=Path(os.devnull))
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not all(path.is_file() and path.read_bytes().endswith(b"\n") for path in files):
            launched.check()
            if time.monotonic() > deadline:
                raise launched.too_slow("did not read the keys")
            time.sleep(_POLL_S)
    finally:
        launched.stop()
