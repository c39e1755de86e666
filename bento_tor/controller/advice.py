"""What operators regret later, told before. Pure: settings in, sentences out."""

from __future__ import annotations

import re
from pathlib import PurePath

from bento_tor.controller.relay import Wanted
from bento_tor.controller.settings import TOUCHED, Settings, differences

# The first with the fixes of a rendezvous race and of several conflux faults (ChangeLog of 0.4.9.11).
ADVISED = (0, 4, 9, 11)
_HIDDEN_BY_UNIT = ("/home", "/root", "/run/user")


def advise(own: Settings, meant: Settings, wanted: Wanted, version: str) -> tuple[str, ...]:
    """Warnings about `meant`, what tor shall have; `own` is what the operator's files say without us."""
    return tuple(
        text
        for text in (
            _correlates(meant),
            _same_kernel(meant),
            _ignored_policy(own),
            _old(version),
            _no_contact(meant),
            _outside_limits(meant),
            _out_of_sight(wanted),
        )
        if text
    )


def lost_by_reload(running: Settings, files: Settings) -> tuple[str, ...]:
    """The touched options that somebody set on the running tor and that are not in its files: a reload ends them."""
    lost = [key for key in TOUCHED if running.all(key) != files.all(key)]
    if not lost and "HiddenServiceDir" not in differences(running, files):
        return ()
    what = ", ".join(lost or ["HiddenServiceDir"])
    return (f"the running tor and its files differ in {what}: a reload makes it as the files say",)


def _correlates(meant: Settings) -> str:
    if not meant.is_public_relay:
        return ""
    return (
        "an onion service on a public relay's tor: when the relay is down, so is the service, and whoever watches the "
        "public list of relays learns which machine it is; for a box that shall stay hidden use a second tor: "
        "'tor-instance-create bento', then 'setup-relay --instance bento'"
    )


def _same_kernel(meant: Settings) -> str:
    if not meant.is_public_relay:
        return ""
    return (
        "the relay's keys lie on the machine that runs strangers' functions, under one kernel; docs/operator.md shows "
        "the layout with two machines"
    )


def _ignored_policy(own: Settings) -> str:
    if own.one("ExitRelay") != "0" or not own.all("ExitPolicy"):
        return ""
    return "the torrc says ExitRelay 0 and has an ExitPolicy: tor ignores that policy and does not say so"


def _old(version: str) -> str:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)\.(\d+)", version)
    if found is None or tuple(int(part) for part in found.groups()) >= ADVISED:
        return ""
    return f"tor {found[0]} is older than {'.'.join(map(str, ADVISED))}, which fixes faults that onion services meet"


def _no_contact(meant: Settings) -> str:
    if not meant.is_public_relay or meant.one("ContactInfo"):
        return ""
    return "the relay has no ContactInfo: nobody can tell you of a fault or a complaint (--contact)"


def _outside_limits(meant: Settings) -> str:
    if not meant.is_relay:
        return ""
    if meant.all("RelayBandwidthRate") and not meant.all("BandwidthRate"):
        return (
            "RelayBandwidthRate counts relayed bytes only: the box's onion traffic and what functions send out come on "
            "top; BandwidthRate caps all of tor's, and the policy's egress_bytes what functions send past it"
        )
    if meant.all("BandwidthRate"):
        return (
            "BandwidthRate caps all that tor carries, the box's onion traffic too; what functions send straight out "
            "(egress 'exit') does not go through tor: count it on top"
        )
    return ""


def _out_of_sight(wanted: Wanted) -> str:
    path = wanted.target.removeprefix("unix:")
    if not wanted.target.startswith("unix:") or not any(PurePath(path).is_relative_to(p) for p in _HIDDEN_BY_UNIT):
        return ""
    return f"tor's systemd unit hides {path} from it (ProtectHome): choose a --state below /var/lib"
