"""A tor as Debian's package runs it: the default instance or `tor@NAME`, where its files are, who it runs as.

    /etc/tor/torrc                               /etc/tor/instances/NAME/torrc
    /usr/share/tor/tor-service-defaults-torrc    /run/tor-instances/NAME.defaults
    tor@default.service                          tor@NAME.service

Finds and names; what the files mean is asked of tor itself (`settings`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from bento_tor.errors import ConfigError

DEFAULT = "default"
# tor-instance-create(8) allows these; anything else could lead out of the folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_START_TIMEOUT_S = 120


class Instance(msgspec.Struct, frozen=True):
    """One tor of the system's. `root` is "/" but for trials under a prefix."""

    name: str
    root: str
    torrc_path: str
    defaults_path: str

    @property
    def torrc(self) -> Path:
        """Its torrc; where that is a link, what it leads to."""
        return Path(self.torrc_path)

    @property
    def defaults(self) -> Path:
        """What it reads before its torrc."""
        return Path(self.defaults_path)

    @property
    def folder(self) -> Path:
        """Where our drop-in is put."""
        return self.torrc.parent / "torrc.d"

    @property
    def dropin(self) -> Path:
        """Our drop-in."""
        return self.folder / "50-bento.conf"

    @property
    def unit(self) -> str:
        """Its name in systemd."""
        return f"tor@{self.name}"


def find(root: Path, name: str | None = None) -> Instance:
    """The default instance, or the one of that name. Raises ConfigError where it is not there."""
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a tor instance", hint=_instances_hint(root))
    if name in (None, DEFAULT):
        torrc, defaults = root / "etc/tor/torrc", root / "usr/share/tor/tor-service-defaults-torrc"
    else:
        torrc, defaults = root / f"etc/tor/instances/{name}/torrc", root / f"run/tor-instances/{name}.defaults"
    if not torrc.is_file():
        hint = "apt-get install tor; a tor that runs elsewhere: --control HOST:PORT and --target"
        raise ConfigError(f"there is no {torrc}", hint=hint if name is None else _instances_hint(root))
    if not defaults.is_file():
        hint = f"systemctl start tor@{name}" if name else "is this Debian's tor? else name it: --control, --target"
        raise ConfigError(f"there is no {defaults}", hint=hint)
    return Instance(name or DEFAULT, str(root), str(torrc.resolve()), str(defaults))


def start(instance: Instance) -> bool:
    """Have the service manager start it, where one runs the system. False: there is none, or it could not."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not (Path(instance.root) / "run/systemd/system").is_dir():
        return False
    try:
        argv = [systemctl, "start", instance.unit]
        return subprocess.run(argv, capture_output=True, timeout=_START_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _instances_hint(root: Path) -> str:
    found = sorted(path.parent.name for path in (root / "etc/tor/instances").glob("*/torrc"))
    return f"there are {', '.join(found)}" if found else "tor-instance-create NAME makes one"
