"""The operator's onion services: what is written down of each, putting it up and taking it down, what tor says of it.

    STATE/onions/NAME.seed       its key, ours (the box's own is keys/onion.seed)
    STATE/onions/NAME.json       where it leads, and how it is put up
    STATE/onions/NAME.clients    whom it lets in

Two ways to put one up: `detached` (ADD_ONION, as long as tor runs), or `dir` (a HiddenServiceDir of tor's, by SETCONF;
the same lines in a torrc make it last). Put up again it has the same address.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bento_tor.controller import client_auth, onion, relay, rewrite
from bento_tor.controller.bootstrap import read_bootstrap
from bento_tor.controller.client_auth import Access
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import HsDescEvent
from bento_tor.controller.onion import Defences
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, TorError

Report = Callable[[str], None]
Line = tuple[str, str]

# The service that `serve --publish` puts up, or that setup-relay gave to the box.
BOX = "box"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_QUIET_S = 3.0
_AGAIN_S = 8.0
# A directory refuses a descriptor whose revision is not above that of the one that it has, and tor counts revisions in
# seconds. Of two changes in one second the later is refused, and stays so until tor uploads again by itself, an hour or
# two later: a key that was revoked would open the service till then.
APART_S = 1.1
_ASKED_ALL = "QUERY_NO_HSDIR"


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One service. `control`: the tor that it was put up on; empty: on none yet."""

    name: str
    port: int
    target: str
    kind: Literal["detached", "dir"] = "detached"
    pow_rate: int = 0
    max_streams: int = 0
    single_hop: bool = False
    control: str = ""

    @property
    def defences(self) -> Defences:
        """What it does against floods."""
        return Defences(self.pow_rate, self.max_streams)


@dataclass(frozen=True)
class Place:
    """Where the services of one state folder are written down."""

    state: Path

    @property
    def folder(self) -> Path:
        """All but the box's key."""
        return self.state / "onions"

    def seed(self, name: str) -> Path:
        """The file of its key."""
        return self.state / "keys" / "onion.seed" if name == BOX else self.folder / f"{name}.seed"

    def access(self, name: str) -> Path:
        """The file of its clients."""
        return self.folder / f"{name}.clients"

    def names(self) -> list[str]:
        """The services that are written down, but for the box's own."""
        return sorted(path.stem for path in self.folder.glob("*.json") if _NAME.fullmatch(path.stem))

    def maybe_load(self, name: str) -> Service | None:
        """One of them. Raises ConfigError where its file cannot be used."""
        path = self.folder / f"{check_name(name)}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Service)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as why:
            raise ConfigError(f"{path} cannot be used: {getattr(why, 'strerror', None) or why}") from why

    def load(self, name: str) -> Service:
        """One of them. Raises ConfigError where there is none."""
        found = self.maybe_load(name)
        if found is None:
            known = ", ".join(self.names())
            hint = f"there are {known}" if known else "'bento-tor onion create' makes one"
            raise ConfigError(f"no onion service is called {name!r}", hint=hint)
        return found

    def store(self, service: Service) -> None:
        """Write it down. Raises ConfigError."""
        self.make()
        rewrite.write(self.folder / f"{service.name}.json", msgspec.json.encode(service), like=None)

    def make(self) -> None:
        """The folder, for who owns the state only. Raises ConfigError."""
        try:
            self.state.mkdir(parents=True, exist_ok=True, mode=0o711)
            self.folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as why:
            raise rewrite.unwritable(self.folder, why) from why

    def forget(self, name: str, *, key_too: bool) -> None:
        """Its record; with `key_too` nobody can ever have its address again. Raises ConfigError."""
        rewrite.remove(self.folder / f"{check_name(name)}.json")
        if key_too:
            rewrite.remove(self.access(name))
            rewrite.remove(self.seed(name))

    def address(self, name: str) -> str:
        """Its address. Raises ConfigError where there is no key."""
        try:
            return onion.onion_address(onion.load_seed(self.seed(name)))
        except FileNotFoundError as why:
            raise ConfigError(f"there is no key of {name!r} in {self.state}", hint="another --state?") from why


def check_name(name: str) -> str:
    """Raises ConfigError where no service may have that name: it is one of a file."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a service", hint="up to 32 small letters, digits and -")
    return name


def check_target(target: str) -> str:
    """Raises ConfigError where a service cannot lead there."""
    return str(Endpoint.parse(target))


def service_dir(tor: Tor, name: str) -> Path:
    """The HiddenServiceDir of a service of ours at that tor; of the box's own the one that setup-relay made."""
    base = Path(tor.get_conf("DataDirectory")[0])
    return base / (relay.SERVICE_DIR if name == BOX else f"bento-onion-{name}")


def torrc_lines(service: Service, folder: str) -> tuple[Line, ...]:
    """What makes it a service of a torrc."""
    lines = [("HiddenServiceDir", folder), ("HiddenServicePort", f"{service.port} {service.target}")]
    if service.pow_rate:
        lines += [
            ("HiddenServicePoWDefensesEnabled", "1"),
            ("HiddenServicePoWQueueRate", str(service.pow_rate)),
            ("HiddenServicePoWQueueBurst", str(10 * service.pow_rate)),
        ]
    if service.max_streams:
        lines.append(("HiddenServiceMaxStreams", str(service.max_streams)))
    return tuple(lines)


def put_up(
    tor: Tor, service: Service, seed: bytes, access: Access, *, timeout_s: float, report: Report | None = None
) -> None:
    """Put it up, or again with what has changed; returns when the directories have its descriptors.

    A single-hop service is one of kind `dir`: tor 0.4.9.11 builds circuits of four hops for what ADD_ONION puts up,
    with NonAnonymous too. One that is up is changed a second after the last change at the earliest.

    Raises TorError where tor refuses, TorTimeout, ConfigError where tor's folder is out of reach."""
    address = onion.onion_address(seed)
    onion.check_hops(tor, single_hop=service.single_hop)
    up = is_up(tor, service, address)
    if up:
        time.sleep(APART_S)
    if service.kind == "dir":
        folder = service_dir(tor, service.name)
        if not onion.maybe_place_key(folder, seed):
            _check_key(folder, seed)
        if client_auth.write_authorized(folder, access.keys) and up:
            with onion.uploaded_anew(tor, address, timeout_s=timeout_s):
                settle_dir(tor, str(folder), torrc_lines(service, str(folder)))
            return
        settle_dir(tor, str(folder), torrc_lines(service, str(folder)))
        onion.wait_uploaded(tor, address, timeout_s=timeout_s)
        return
    if address in detached(tor):
        onion.withdraw(tor, address)
    onion.publish(
        tor,
        seed,
        service.port,
        service.target,
        timeout_s=timeout_s,
        detach=True,
        report=report,
        defences=service.defences,
        clients=tuple(access.keys.values()),
    )


def take_down(tor: Tor, service: Service, address: str) -> bool:
    """Take it down. False: that tor did not have it. Raises TorError."""
    if service.kind == "dir":
        return settle_dir(tor, str(service_dir(tor, service.name)), ())
    if address not in detached(tor):
        return False
    onion.withdraw(tor, address)
    return True


def settle_dir(tor: Tor, folder: str, lines: tuple[Line, ...]) -> bool:
    """Make `lines` what tor has of the service in `folder`, and leave its others alone; tor reads that folder's
    authorized_clients again. Returns whether it had that service. Raises TorError."""
    others: list[Line] = []
    had = ours = False
    for key, value in relay.read_settings(tor).services:
        if key == "HiddenServiceDir":
            ours = value == folder
            had = had or ours
        if not ours:
            others.append((key, value))
    meant = [*others, *lines]
    if meant:
        tor.set_conf(meant)
    elif had:
        tor.set_conf([("HiddenServiceDir", None)], reset=True)
    return had


def let_in(tor: Tor, folder: Path, address: str, access: Access, *, timeout_s: float) -> bool:
    """Have tor read who may use its service in `folder`, without its torrc; returns when the directories have what
    follows from it, where tor has a network. False: it has no such service. Raises TorError, TorTimeout,
    ConfigError."""
    changed, services = client_auth.write_authorized(folder, access.keys), relay.read_settings(tor).services
    if ("HiddenServiceDir", str(folder)) not in services:
        return False
    time.sleep(APART_S)
    online = tor.get_conf("DisableNetwork") != ["1"] and read_bootstrap(tor).done
    with onion.uploaded_anew(tor, address, timeout_s=timeout_s) if changed and online else nullcontext():
        tor.set_conf(services)
    return True


def is_up(tor: Tor, service: Service, address: str) -> bool:
    """Whether that tor has it, with a descriptor or not yet. Raises TorError."""
    if service.kind == "dir":
        return str(service_dir(tor, service.name)) in dirs(tor)
    return address in detached(tor)


def detached(tor: Tor) -> tuple[str, ...]:
    """The addresses of the services that live as long as that tor. Raises TorError."""
    return tuple(f"{name}.onion" for name in tor.get_info("onions/detached").split())


def dirs(tor: Tor) -> tuple[str, ...]:
    """The folders of the services that its settings name. Raises TorError."""
    return tuple(value for key, value in relay.read_settings(tor).services if key == "HiddenServiceDir")


@dataclass(frozen=True)
class Fetched:
    """What the directories answered about one address: the descriptor, or why there is none."""

    text: str
    asked: int
    reason: str


def fetch(tor: Tor, address: str, *, timeout_s: float) -> Fetched:
    """Fetch the descriptor of `address` anew, through circuits. Raises TorError where tor cannot ask at all.

    tor asks a directory for the same address once in 15 minutes (5 seconds in a private network). Where it has asked
    all of them it says so, or nothing; it is asked again for some seconds, and then for what it was told last."""
    deadline = time.monotonic() + timeout_s
    again = min(deadline, time.monotonic() + _AGAIN_S)
    while True:
        found = _fetch_once(tor, address, deadline)
        if found.text or found.asked or found.reason not in ("", _ASKED_ALL):
            return found
        if time.monotonic() > again:
            return Fetched(_maybe_info(tor, f"hs/client/desc/id/{address.removesuffix('.onion')}"), 0, found.reason)
        time.sleep(1.0)


def _fetch_once(tor: Tor, address: str, deadline: float) -> Fetched:
    asked = failed = 0
    reason = ""
    with tor.events("HS_DESC", "HS_DESC_CONTENT") as events:
        tor.ask(f"HSFETCH {address.removesuffix('.onion')}")
        while time.monotonic() < deadline:
            event = events.maybe_next(_QUIET_S if asked == failed else deadline - time.monotonic())
            if event is None:
                break
            if event.type == "HS_DESC_CONTENT" and event.word(0) == address.removesuffix(".onion"):
                text = event.text.partition("\n")[2]
                if text.startswith("hs-descriptor"):
                    return Fetched(text, asked, "")
            if isinstance(event, HsDescEvent) and f"{event.address}.onion" == address:
                asked += event.action == "REQUESTED"
                failed += event.action == "FAILED"
                reason = event.reason or reason
                if reason == _ASKED_ALL:
                    break
    return Fetched("", asked, reason)


def own_descriptor(tor: Tor, address: str) -> str:
    """The descriptor that this tor makes for a service of its own; empty where it has none."""
    return _maybe_info(tor, f"hs/service/desc/id/{address.removesuffix('.onion')}")


def _maybe_info(tor: Tor, key: str) -> str:
    try:
        return tor.get_info(key)
    except TorError:
        return ""


def _check_key(folder: Path, seed: bytes) -> None:
    """Raises ConfigError where the key in there is not this one."""
    try:
        found = (folder / "hs_ed25519_secret_key").read_bytes()
    except OSError as why:
        hint = "run this as root or as tor's user, or leave --dir out"
        raise ConfigError(f"tor's folder {folder.parent} cannot be written", hint=hint) from why
    if found != onion.service_key_file(seed):
        hint = "give this one another name, or take that folder away if nobody needs its address any more"
        raise ConfigError(f"{folder} holds the key of another service", hint=hint)
