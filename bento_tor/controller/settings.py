"""What a torrc means, asked of tor itself (`--dump-config`, which verifies as well) and never parsed by us.

Owns the words of tor's complaints; changes nothing.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from bento_tor.controller.debian import Instance
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.processes import find_program
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, TorError

Line = tuple[str, str]

# What a drop-in of ours may set, beside onion services.
TOUCHED = (
    "Nickname",
    "ORPort",
    "ContactInfo",
    "BandwidthRate",
    "BandwidthBurst",
    "MyFamily",
    "ExitRelay",
    "ReducedExitPolicy",
    "ExitPolicy",
)
_TIMEOUT_S = 60
# Keys and descriptors take some KiB.
_ROOM_BYTES = 4 * 1024 * 1024
_COMPLAINT = re.compile(r"\[(?:warn|err)\] (.*)")
_NOISE = re.compile(
    "Reading config failed|You are running Tor as root|a relay and a hidden service|TestingTorNetwork is set"
    "|You have used DirAuthority"
)
# tor leaves these out when it states a service that has them by default.
_IMPLIED = {("HiddenServiceVersion", "3")}


class Settings(msgspec.Struct, frozen=True):
    """All options of one configuration, in tor's order."""

    lines: tuple[Line, ...]

    def all(self, key: str) -> tuple[str, ...]:
        """The values of one option."""
        return tuple(value for name, value in self.lines if name.lower() == key.lower())

    def one(self, key: str) -> str:
        """The value of an option that has one; empty where it is unset."""
        return next(iter(self.all(key)), "")

    @property
    def services(self) -> tuple[Line, ...]:
        """The lines of the onion services."""
        lines = (line for line in self.lines if line[0].startswith("HiddenService"))
        return tuple(line for line in lines if line not in _IMPLIED and not _is_global(line[0]))

    @property
    def is_relay(self) -> bool:
        """Whether it has an ORPort."""
        return any(value.split()[0] != "0" for value in self.all("ORPort") if value)

    @property
    def is_public_relay(self) -> bool:
        """Whether the public network would list it."""
        return self.is_relay and self.one("TestingTorNetwork") != "1"

    @property
    def control(self) -> Endpoint:
        """Its control port: a unix socket where it has one. Raises ConfigError where it has none."""
        for value in self.all("ControlSocket"):
            path = _first_word(value)
            if path != "0":
                return Endpoint.unix(Path(path.removeprefix("unix:")))
        for value in self.all("ControlPort"):
            word = _first_word(value)
            if word.isdigit() and word != "0":
                return Endpoint.tcp("127.0.0.1", int(word))
            if word.startswith("unix:") or ":" in word:
                return Endpoint.parse(word)
        raise ConfigError("this tor has no control port", hint="put 'ControlSocket /run/tor/control' into its torrc")


def read(instance: Instance, torrc: Path | None = None) -> Settings:
    """What the files of `instance` say, or would say with `torrc` in the place of its own. Verified by tor with the
    same defaults; started as root it takes on its own user for that, as at a real start.

    Raises ConfigError with tor's complaints."""
    own = _dump(instance, instance.defaults, torrc or instance.torrc)
    keys = {key for key, _ in own}
    # A dump leaves out what is as the defaults file has it, and that is where user, data and control socket are.
    return Settings((*own, *(line for line in _base(instance) if line[0] not in keys)))


@functools.cache
def _base(instance: Instance) -> tuple[Line, ...]:
    return _dump(instance, Path(os.devnull), instance.defaults)


def _dump(instance: Instance, defaults: Path, torrc: Path) -> tuple[Line, ...]:
    """`short`: what is not tor's default. (`full` makes tor 0.4.9.11 abort where TestingTorNetwork is set.)"""
    files = ("--defaults-torrc", str(defaults), "-f", str(torrc), "--RunAsDaemon", "0")
    done = _run_tor(*files, "--dump-config", "short")
    if done.returncode:
        # A dump that fails does not always say why.
        text = _run_tor(*files, "--verify-config").stdout.decode("utf-8", "replace")
        raise ConfigError(_complaints(text), hint=f"tor --verify-config -f {instance.torrc}")
    return tuple(_parse(done.stdout.decode("utf-8", "replace")))


def _run_tor(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        argv = [find_program("tor", "tor"), *arguments]
        return subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise TorError("tor does not verify a configuration: it does not run, or does not end") from why


def check_readable(settings: Settings, paths: Iterable[Path]) -> None:
    """Raises ConfigError where tor's own user cannot read one of these: a reload, done as that user, would end it."""
    for path in paths:
        if not may(settings, "-r", path):
            user = settings.one("User")
            hint = f"let {user} read it: a reload of tor, done as that user, would end it"
            raise ConfigError(f"tor's user {user} cannot read {path}", hint=hint)


def check_data(settings: Settings, names: Iterable[str]) -> None:
    """Raises ConfigError where tor would die of its data directory when it takes up a relay or a service: it verifies
    none of this before. `names`: of folders in it."""
    data, user = Path(settings.one("DataDirectory")), settings.one("User")
    uid = pwd.getpwnam(user).pw_uid if user and os.geteuid() == 0 else os.geteuid()
    if not data.is_dir():
        raise ConfigError(f"tor's data directory {data} is not there")
    if shutil.disk_usage(data).free < _ROOM_BYTES:
        raise ConfigError(f"the disk of tor's data directory {data} is full", hint="free some space first")
    for path in (data, *(data / name for name in names)):
        found = path.lstat() if os.path.lexists(path) else None
        if found is not None and not (stat.S_ISDIR(found.st_mode) and found.st_uid == uid):
            raise ConfigError(f"{path} is no folder of tor's own", hint="move it away, or give it to tor's user")


def may(settings: Settings, what: str, path: Path) -> bool:
    """Whether tor's own user may do that (`-r`, `-x`, as `test` has it) with an existing path. Raises ConfigError where
    there is no such user."""
    user = settings.one("User")
    if os.geteuid() != 0 or not user or not path.exists():
        return True
    try:
        found = pwd.getpwnam(user)
    except KeyError as why:
        raise ConfigError(f"tor's user {user} does not exist") from why
    argv = [find_program("setpriv", "util-linux"), f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}"]
    argv += ["--init-groups", "test", what, str(path)]
    return subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0


def running(tor: Tor) -> Settings:
    """What a running tor says of itself, in the same form. Raises TorError."""
    return Settings(tuple(_parse(tor.get_info("config-text"))))


def differences(now: Settings, wanted: Settings) -> tuple[str, ...]:
    """The touched options in which two configurations differ."""
    keys = [key for key in TOUCHED if now.all(key) != wanted.all(key)]
    return (*keys, *(("HiddenServiceDir",) if now.services != wanted.services else ()))


def changes(now: Settings, wanted: Settings) -> tuple[tuple[str, str | None], ...]:
    """The lines for RESETCONF that make `now` to `wanted`, in one command that tor takes whole or not at all."""
    lines: list[tuple[str, str | None]] = []
    for key in differences(now, wanted):
        if key == "HiddenServiceDir":
            lines += wanted.services or [(key, None)]
        else:
            lines += [(key, value) for value in wanted.all(key)] or [(key, None)]
    return tuple(lines)


def _is_global(key: str) -> bool:
    return key in ("HiddenServiceStatistics", "HiddenServiceSingleHopMode", "HiddenServiceNonAnonymousMode")


def _complaints(text: str) -> str:
    """tor's own words, without what it says at each start."""
    said = [line for line in _COMPLAINT.findall(text) if not _NOISE.search(line)]
    return "tor rejects this configuration: " + ("; ".join(dict.fromkeys(said[-3:])) or "it does not say why")


def _parse(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        # Its log comes on standard output too; an option's line begins with the option's name.
        if key.isalnum() and key[:1].isalpha() and not _is_log(line):
            yield key, _unquoted(value)


def _is_log(line: str) -> bool:
    return re.match(r"[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d", line) is not None


def _first_word(value: str) -> str:
    """The first word of a port line; a path with blanks is in quotes."""
    found = re.match(r'(unix:)?"((?:[^"\\]|\\.)*)"|(\S+)', value)
    if found is None:
        return "0"
    return found[3] or f"{found[1] or ''}{_unquoted(chr(34) + found[2] + chr(34))}"


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return re.sub(r"\\(.)", r"\1", value[1:-1])
