"""Whether what setup-relay did still stands: in the running tor, in its files, in who may do what. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bento_tor.controller import advice, settings
from bento_tor.controller.dropin import includes_it, is_included, maybe_owner
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.findings import Finding
from bento_tor.controller.relay import SERVICE_DIR, SetUp
from bento_tor.controller.settings import Settings
from bento_tor.controller.tor import Tor


def running(tor: Tor, record: SetUp | None) -> Iterator[Finding]:
    """What files and running tor say must be the same, or a restart changes it; and what operators regret."""
    if record is None:
        return
    now = settings.running(tor)
    for text in advice.advise(now, now, record.wanted, ""):
        yield Finding("settings", "warn", text)
    if record.instance is None:
        text = "the box's part was set by the control port: it is gone when tor restarts or reads its torrc"
        yield Finding("settings", "warn", text, "run setup-relay without --control on tor's own machine")
        return
    lost = advice.lost_by_reload(now, settings.read(record.instance))
    for text in lost:
        yield Finding("settings", "warn", text, "systemctl reload tor@default, or put it into the torrc")
    if not lost:
        yield Finding("settings", "ok", "the running tor and its files agree")


def files(record: SetUp) -> Iterator[Finding]:
    """The drop-in and its %include line, and whether tor may do what it must."""
    instance = record.instance
    if instance is None:
        return
    again = "run setup-relay again"
    try:
        torrc, dropin = instance.torrc.read_bytes(), instance.dropin.read_bytes()
    except OSError as why:
        yield Finding("include", "no", f"{why.filename} cannot be read: {why.strerror}", again)
        return
    included = is_included(torrc, instance.dropin) or includes_it(torrc, instance.dropin)
    words = "includes" if included else "does not include"
    yield Finding(
        "include", "ok" if included else "no", f"{instance.torrc} {words} {instance.dropin}", "" if included else again
    )
    if maybe_owner(dropin) != record.wanted.state:
        yield Finding("include", "no", f"{instance.dropin} belongs to another box", "look into it")
    meant = settings.read(instance)
    yield from _permissions(meant, record)


def _permissions(meant: Settings, record: SetUp) -> Iterator[Finding]:
    target, user = Endpoint.parse(record.wanted.target).path, meant.one("User") or "its user"
    service = Path(meant.one("DataDirectory")) / SERVICE_DIR
    trouble = False
    if target is not None and not settings.may(meant, "-x", target.parent):
        trouble = True
        yield Finding("permissions", "no", f"tor's user {user} cannot reach {target}", "let it pass all folders above")
    if service.exists() and service.stat().st_mode & 0o077:
        trouble = True
        yield Finding(
            "permissions", "no", f"others may look into {service}: the service's key is there", f"chmod 700 {service}"
        )
    if not trouble:
        yield Finding("permissions", "ok", f"tor's user {user} reaches the box's socket, and its keys are its own")
