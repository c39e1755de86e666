"""What is wrong with a tor that a box needs, looked for: `doctor`'s tor half. Changes nothing.

Each check gives findings: what was looked at, how it is, and what to do. It goes on after one that fails, so that all
of it is told at once.
"""

from __future__ import annotations

import calendar
import grp
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import msgspec

from bento_tor.controller import advice, setup_checks
from bento_tor.controller.bootstrap import read_bootstrap
from bento_tor.controller.condition import read_condition
from bento_tor.controller.connection import connect
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.findings import Finding
from bento_tor.controller.policy import maybe_exit_policy
from bento_tor.controller.processes import find_program
from bento_tor.controller.relay import VIRTUAL_ADDRESS, SetUp
from bento_tor.controller.tor import Tor
from bento_tor.errors import BentoError, TorError
from bento_tor.policy.exit_policy import accepts, parse

_CLOCK = "%Y-%m-%d %H:%M:%S"
_TIMEOUT_S = 10.0
_VERSION = re.compile(r"\d+\.\d+\.\d+\.\d+[\w-]*")


class Place(msgspec.Struct, frozen=True):
    """Which tor, and for what: its control port (None: look for one), what setup-relay did there, the box's socket,
    and whether the box offers `exit` egress by its policy."""

    control: Endpoint | None = None
    maybe_record: SetUp | None = None
    exit_egress: bool = False


def check(place: Place) -> tuple[Finding, ...]:
    """Look at everything. Never raises for what it finds."""
    record = place.maybe_record
    from_files = tuple(_guarded("files", lambda: setup_checks.files(record))) if record is not None else ()
    try:
        tor = connect(place.control, timeout_s=_TIMEOUT_S)
    except TorError as why:
        # In its words: nothing there, no permission and for whom there is, no cookie, no control port.
        return (Finding("control", "no", why.message, why.hint), *from_files)
    with tor:
        checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("control", lambda: _control(tor)),
            ("version", lambda: _version(tor)),
            ("bootstrap", lambda: _bootstrap(tor)),
            ("clock", lambda: _clock(tor)),
            ("ports", lambda: _ports(tor)),
            ("relay", lambda: _relay(tor)),
            ("policy", lambda: _policy(tor, place)),
            ("onion", lambda: _onion(tor, record)),
            ("settings", lambda: setup_checks.running(tor, record)),
        )
        found = [finding for about, look in checks for finding in _guarded(about, look)]
    return (*found, *from_files)


def _guarded(about: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except BentoError as why:
        return [Finding(about, "no", why.message, why.hint)]


def _control(tor: Tor) -> Iterator[Finding]:
    yield Finding("control", "ok", f"{tor.endpoint} lets us in")
    for listener in _listeners(tor, "control"):
        if not _is_private(listener):
            hint = "ControlPort 127.0.0.1:9051, or a ControlSocket: who reaches it owns this tor"
            yield Finding("control", "no", f"the control port is open to the network at {listener}", hint)
    if _first(tor, "CookieAuthentication") == "1":
        yield _cookie(tor)
    elif not any(tor.get_conf("HashedControlPassword")):
        hint = "put 'CookieAuthentication 1' into its torrc"
        yield Finding("control", "warn", "whoever reaches the control port may use it: no cookie is asked for", hint)


def _cookie(tor: Tor) -> Finding:
    path = Path(_first(tor, "CookieAuthFile") or str(Path(_first(tor, "DataDirectory")) / "control_auth_cookie"))
    try:
        found = path.stat()
    except OSError as why:
        return Finding("control", "warn", f"the cookie {path} cannot be looked at: {why.strerror}")
    if found.st_mode & stat.S_IROTH:
        return Finding(
            "control", "no", f"everybody may read the cookie {path}: and so own this tor", f"chmod o-r {path}"
        )
    if not found.st_mode & stat.S_IRGRP:
        return Finding("control", "ok", f"the cookie {path} is for its owner only")
    group, members = _group(found.st_gid)
    return Finding("control", "ok", f"the cookie {path} is for its owner, and the group {group} ({members})")


def _group(gid: int) -> tuple[str, str]:
    try:
        found = grp.getgrgid(gid)
    except KeyError:
        return str(gid), "which has no name"
    return found.gr_name, ", ".join(found.gr_mem) or "nobody else is in it"


def _version(tor: Tor) -> Iterator[Finding]:
    advised = ".".join(map(str, advice.ADVISED))
    found = _VERSION.search(tor.version)
    old = found is not None and tuple(int(n) for n in re.findall(r"\d+", found[0])[:4]) < advice.ADVISED
    hint = "upgrade it (deb.torproject.org has packages), then restart it"
    yield Finding("version", "warn" if old else "ok", f"tor {tor.version}; {advised} or later is advised", hint * old)
    said = tor.msg("GETINFO status/version/current")
    if said.ok and said.lines[0].partition("=")[2] in ("obsolete", "unrecommended"):
        yield Finding("version", "warn", "the directory authorities do not recommend this version", hint)
    installed = _maybe_installed()
    if found is not None and installed is not None and installed != found[0]:
        text = f"tor {installed} is installed, and an older process runs on"
        yield Finding("version", "warn", text, "restart it: systemctl restart tor@default")


def _maybe_installed() -> str | None:
    try:
        argv = [find_program("tor", "tor"), "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired, TorError):
        return None
    found = _VERSION.search(done.stdout)
    return found[0].rstrip(".") if found is not None else None


def _bootstrap(tor: Tor) -> Iterator[Finding]:
    bootstrap = read_bootstrap(tor)
    yield Finding(
        "bootstrap", "ok" if bootstrap.done else "no", bootstrap.words, "" if bootstrap.done else bootstrap.hint
    )


def _clock(tor: Tor) -> Iterator[Finding]:
    """Against the consensus that tor has: the authorities' clocks agree (dir-spec, valid-after and valid-until)."""
    after, until = _time(tor, "consensus/valid-after"), _time(tor, "consensus/valid-until")
    now = time.time()
    if after is None or until is None:
        yield Finding("clock", "warn", "tor has no consensus to compare the clock with")
    elif now < after:
        hint = "set it (timedatectl): tor needs it right to the hour, onion services too"
        yield Finding(
            "clock", "no", f"this machine's clock is at least {int(after - now)} s behind the consensus", hint
        )
    elif now > until:
        hint = "set the clock (timedatectl); if it is right, tor does not reach a directory"
        yield Finding("clock", "no", f"the consensus ended {int(now - until)} s ago by this machine's clock", hint)
    else:
        yield Finding("clock", "ok", "within the time for which the consensus is valid")


def _ports(tor: Tor) -> Iterator[Finding]:
    socks = _listeners(tor, "socks")
    yield Finding("ports", "ok", f"SOCKS at {', '.join(socks) or 'no port'}")
    for listener in socks:
        if not _is_private(listener):
            hint = "SocksPort 127.0.0.1:9050"
            yield Finding("ports", "no", f"the SOCKS port is open to the network at {listener}", hint)
    wanted, heard = _first(tor, "ORPort"), _listeners(tor, "or")
    if wanted not in ("", "0"):
        text = f"ORPort at {', '.join(heard) or 'no port'}"
        yield Finding("ports", "ok" if heard else "no", text, "" if heard else "its log says why tor does not listen")


def _relay(tor: Tor) -> Iterator[Finding]:
    relay = read_condition(tor).maybe_relay
    if relay is None:
        return
    name = f"{relay.nickname} {relay.fingerprint}"
    if not relay.reachable and not relay.listed:
        hint = "open the ORPort in the firewall, or forward it"
        yield Finding("relay", "no", f"{name}: its ORPort has not been seen from outside", hint)
    elif not relay.listed:
        yield Finding(
            "relay", "warn", f"{name} is not in the consensus that this tor has", "a new one takes some hours"
        )
    else:
        yield Finding("relay", "ok", f"{name} is in the consensus: {' '.join(relay.flags)}")


def _policy(tor: Tor, place: Place) -> Iterator[Finding]:
    """As the running tor states it, which is what its descriptor says; not as a torrc does."""
    port = place.maybe_record.wanted.exit_port if place.maybe_record is not None else None
    if _first(tor, "ORPort") in ("", "0"):
        if place.exit_egress or port is not None:
            text = "this tor is no relay, and has no exit policy: exit egress stays closed"
            yield Finding(
                "policy", "no", text, "make it a relay (setup-relay --nickname), or name the relay's: relay = ..."
            )
        return
    stated = maybe_exit_policy(tor)
    if stated is None:
        yield Finding("policy", "warn", "tor does not state its exit policy now", "it learns its own address first")
        return
    rules = parse(stated)
    if port is not None:
        open_ = accepts(rules, IPv4Address(VIRTUAL_ADDRESS), port)
        hint = "" if open_ else "run setup-relay again"
        word = "accepts" if open_ else "does not accept"
        yield Finding("policy", "ok" if open_ else "no", f"{word} the box, {VIRTUAL_ADDRESS}:{port}", hint)
    web = accepts(rules, IPv4Address("1.1.1.1"), 443)
    leaves = "exits to the web are accepted" if web else "no exits to the web"
    warn = place.exit_egress and not web
    hint = "functions with egress 'exit' reach what this policy accepts, and no more" if warn else ""
    yield Finding("policy", "warn" if warn else "ok", leaves, hint)
    if _first(tor, "ExitPolicyRejectPrivate") == "0":
        hint = "ExitPolicyRejectPrivate 1: else circuits reach your own network"
        yield Finding("policy", "no", "private addresses are not refused by themselves", hint)


def _onion(tor: Tor, record: SetUp | None) -> Iterator[Finding]:
    if record is None:
        return
    published = read_condition(tor, record.address).maybe_published
    words = f"{record.address} {'has' if published else 'has no'} descriptor at this tor"
    yield Finding("onion", "ok" if published else "no", words, "" if published else "run setup-relay again")


def _first(tor: Tor, key: str) -> str:
    return next(iter(tor.get_conf(key)), "")


def _time(tor: Tor, key: str) -> float | None:
    reply = tor.msg(f"GETINFO {key}")
    if not reply.ok:
        return None
    try:
        return float(calendar.timegm(time.strptime(reply.lines[0].partition("=")[2], _CLOCK)))
    except ValueError:
        return None


def _listeners(tor: Tor, kind: str) -> list[str]:
    """Where tor listens: `127.0.0.1:9050`, `unix:/path`."""
    return re.findall(r'"([^"]*)"', tor.get_info(f"net/listeners/{kind}"))


def _is_private(listener: str) -> bool:
    if listener.startswith("unix:"):
        return True
    try:
        return ip_address(listener.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False
