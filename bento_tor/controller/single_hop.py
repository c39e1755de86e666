"""A tor of our own for an onion service that need not hide: single-hop, which tor wants to be alone with.

    STATE/single-hop/        its DataDirectory and control socket; as root of Debian's tor user
    STATE/single-hop.torrc   written at each start
    STATE/single-hop.log     what it says

It ends with the process that started it, also when that is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from pathlib import Path

from bento_tor.controller import rewrite
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.launch import LaunchedTor, launch, wait_bootstrapped
from bento_tor.controller.processes import end, find_by_arguments
from bento_tor.controller.settings import Settings, may
from bento_tor.errors import ConfigError
from bento_tor.resources import read_text

_USER = "debian-tor"
_PATIENCE_S = 60.0
_OPEN_S = 30.0


def control_of(state: Path) -> Endpoint:
    """Where the control socket of that state's single-hop tor is. Raises ConfigError where no socket can be there."""
    return Endpoint.unix(state / "single-hop" / "control")


class SingleHopTor:
    """That tor, started when it is wanted. `extra`: a file with further torrc lines, such as a proxy's."""

    def __init__(self, state: Path, *, extra: Path | None = None) -> None:
        self._state = state
        self._extra = extra
        self._maybe_launched: LaunchedTor | None = None

    def up(self) -> Endpoint:
        """Its control port, once it has bootstrapped; started again where it has died. Raises ConfigError, TorError."""
        control = control_of(self._state)
        if self._maybe_launched is not None and self._maybe_launched.process.alive:
            return control
        torrc = self._prepare(control)
        # One that a killed box left behind holds the folder for some seconds more.
        end(find_by_arguments(str(torrc), program="tor"), ask=signal.SIGINT, patience_s=3.0)
        log = self._state / "single-hop.log"
        rewrite.write(log, b"", like=None)
        launched = launch("single-hop", torrc, control=control, log=log, defaults=Path(os.devnull))
        self._maybe_launched = launched
        with launched.connect(timeout_s=_OPEN_S) as tor:
            wait_bootstrapped(launched, tor, timeout_s=_PATIENCE_S)
        return control

    def stop(self) -> None:
        """End it, where it runs."""
        if self._maybe_launched is not None:
            self._maybe_launched.stop()

    def _prepare(self, control: Endpoint) -> Path:
        """Its folder and torrc. Raises ConfigError."""
        folder, user = self._state / "single-hop", _user()
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            if user:
                shutil.chown(folder, user)
            lines = self._extra.read_text(encoding="utf-8").splitlines() if self._extra is not None else []
        except (OSError, UnicodeDecodeError) as why:
            raise ConfigError(f"the single-hop tor cannot be prepared: {why}") from why
        if user and not may(Settings((("User", user),)), "-x", folder.parent):
            raise ConfigError(f"tor's user {user} cannot reach {folder.parent}", hint="choose a --state below /var/lib")
        import jinja2  # few boxes need it

        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)  # noqa: S701 - no HTML
        environment.filters["quoted"] = _quoted
        template = environment.from_string(read_text("torrc_templates", "single_hop.torrc"))
        text = template.render(
            folder=str(folder), control=str(control.path), owner_pid=os.getpid(), user=user, lines=lines
        )
        torrc = self._state / "single-hop.torrc"
        rewrite.write(torrc, (text + "\n").encode(), like=None)
        return torrc


def _user() -> str:
    """As whom it runs; empty: as we do, who are not root. Raises ConfigError where root has no user for it."""
    if os.geteuid() != 0:
        return ""
    try:
        return pwd.getpwnam(_USER).pw_name
    except KeyError as why:
        raise ConfigError(f"there is no user {_USER} for a tor to run as", hint="apt-get install tor") from why


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
