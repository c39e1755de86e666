"""`bento-tor keys`: the operator's keys in one sealed file, and back."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from bento_tor.cli import ui
from bento_tor.cli.client.keys import passphrase_option, read_passphrase
from bento_tor.cli.options import json_option
from bento_tor.errors import ConfigError


@click.group()
def command() -> None:
    """What makes your relay and your box who they are, in one sealed file. ('client keys' is the user's keyring.)"""


@command.command()
@click.argument("file")
@click.option("--state", metavar="DIR", help="The box's state folder.  [default: the default one, if it is there]")
@click.option("--tor-data", metavar="DIR", help="Tor's DataDirectory, with the relay's keys.")
@click.option("--config", "policies", metavar="FILE", multiple=True, help="Settings or policy of the box. Repeat it.")
@passphrase_option
@json_option
def backup(
    file: str, state: str | None, tor_data: str | None, policies: tuple[str, ...], passphrase_file: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Seal relay identity, onion keys, box keys, settings and policy into FILE (scrypt, AES-256-GCM). Never overwrites
    one. Stored functions and sessions are not in it."""
    from bento_tor.config import data_dir
    from bento_tor.controller import backup as backups

    if os.path.lexists(file):
        raise ConfigError(f"{file} is there already", hint="name another one")
    default = data_dir() / "box"
    folder = Path(state) if state else default if default.is_dir() else None
    kept = backups.collect(
        state=folder,
        tor_data=Path(tor_data) if tor_data else None,
        policy=tuple(Path(policy) for policy in policies),
    )
    data = backups.seal(kept, read_passphrase(passphrase_file, confirm=True))
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(fd)
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why
    names = [f"{one.root}/{one.path}" for one in kept.files]
    onions = sorted(set(kept.onions.values()))
    if as_json:
        ui.result_json({"file": file, "files": names, "fingerprint": kept.fingerprint or None, "onions": onions})
        return
    _tell(f"{file}: {len(names)} files, sealed", kept.fingerprint, onions)


@command.command()
@click.argument("file")
@click.option("--state", metavar="DIR", help="Restore the box's keys into this state folder.")
@click.option("--tor-data", metavar="DIR", help="Restore tor's keys into this DataDirectory; that tor must not run.")
@click.option("--config-to", metavar="DIR", help="Restore settings and policy into this folder.")
@click.option("--owner", metavar="USER", help="Whose tor's files are.  [default as root: the folder's, or debian-tor]")
@passphrase_option
@json_option
def restore(
    file: str, state: str | None, tor_data: str | None, config_to: str | None, owner: str | None,
    passphrase_file: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Put back what FILE holds, with owner and modes, and prove that it is the same relay and the same addresses: a tor
    without a network reads the keys. Overwrites nothing."""
    from bento_tor.controller import backup as backups
    from bento_tor.controller import restoring

    try:
        with Path(file).open("rb") as opened:
            data = opened.read(backups.MAX_FILE_BYTES)
    except OSError as why:
        raise ConfigError(f"cannot read {file}: {why.strerror}") from why
    kept = backups.unseal(data, read_passphrase(passphrase_file, confirm=False))
    with ui.progress("restoring, and having tor read the keys"):
        done = restoring.restore(
            kept,
            state=Path(state).absolute() if state else None,
            tor_data=Path(tor_data).absolute() if tor_data else None,
            policy=Path(config_to).absolute() if config_to else None,
            owner=owner if owner is not None else _owner(tor_data),
        )
    if as_json:
        ui.result_json({"files": done.files, "fingerprint": done.fingerprint or None, "onions": list(done.onions)})
        return
    _tell(f"{done.files} files are back, and prove to be the same", done.fingerprint, list(done.onions))


def _owner(tor_data: str | None) -> str:
    """As root, a tor's files are never root's."""
    if os.geteuid() != 0 or tor_data is None:
        return ""
    folder = Path(tor_data)
    uid = folder.stat().st_uid if folder.is_dir() else 0
    try:
        return pwd.getpwuid(uid).pw_name if uid else "debian-tor"
    except KeyError as why:
        raise ConfigError(f"{folder} belongs to nobody known", hint="name tor's user: --owner") from why


def _tell(first: str, fingerprint: str, onions: list[str]) -> None:
    ui.result(first)
    if fingerprint:
        ui.result(f"  relay  {fingerprint}")
    for address in onions:
        ui.result(f"  onion  {address}")
