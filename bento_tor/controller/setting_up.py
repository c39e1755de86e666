"""Setting up a Debian tor for a box, and undoing it: plan, the run of it, and what must be seen before it counts.

How files and the running tor change together is in `changeover`; what the drop-in holds in `dropin`.
"""

from __future__ import annotations

import random
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from bento_tor.controller import address, advice, changeover, inplace, settings
from bento_tor.controller.bootstrap import read_bootstrap
from bento_tor.controller.changeover import Journal, Records, Report
from bento_tor.controller.connection import connect
from bento_tor.controller.debian import Instance
from bento_tor.controller.dropin import NOTHING, Ours, check_free, check_taken, includes_it, maybe_owner, render
from bento_tor.controller.endpoints import Endpoint
from bento_tor.controller.events import StatusEvent
from bento_tor.controller.onion import wait_uploaded
from bento_tor.controller.processes import ProcessId, identify
from bento_tor.controller.relay import SERVICE_DIR, VIRTUAL_ADDRESS, SetUp, Wanted, confirm_exit, service_address
from bento_tor.controller.settings import Settings
from bento_tor.controller.tor import Events, Tor
from bento_tor.errors import ConfigError, TorError, TorTimeout

USUAL_ORPORT = 9001
_POLL_S = 0.5
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What would change. `own`: the operator's files without us; `meant`: all, as tor would read it."""

    instance: Instance
    wanted: Wanted
    before: Ours
    after: Ours
    own: Settings
    meant: Settings

    @property
    def diff(self) -> str:
        """The change, as `diff -u` shows it; empty where there is none."""
        return inplace.diff(self.instance, self.before, self.after)


def plan(instance: Instance, wanted: Wanted) -> Plan:
    """What `wanted` needs, verified by tor. Changes nothing. Raises ConfigError, TorError."""
    before = inplace.read_ours(instance)
    check_free(instance, before, wanted.state)
    own = inplace.mean(instance, NOTHING)
    if own.one("Sandbox") == "1":
        raise ConfigError("this tor has 'Sandbox 1': it may open no file that it did not know at its start")
    settings.check_readable(own, [instance.torrc])
    covered = includes_it(inplace.read_torrc(instance), instance.dropin)
    others = inplace.strangers(instance)
    if others and not covered:
        hint = f"move it away, or put '%include {instance.folder}/*.conf' into the torrc yourself"
        raise ConfigError(f"{others[0]} is not included by the torrc, and would be by our line", hint=hint)
    after = Ours(render(wanted, own), included=not covered)
    meant = inplace.mean(instance, after)
    check_taken(wanted, meant)
    settings.check_data(meant, [SERVICE_DIR, *(["keys"] if meant.is_relay else [])])
    return Plan(instance, wanted, before, after, own, meant)


def plan_undo(instance: Instance, wanted: Wanted) -> Plan:
    """The same for the way back. Raises ConfigError."""
    before = inplace.read_ours(instance)
    check_free(instance, before, wanted.state)
    own = inplace.mean(instance, NOTHING)
    return Plan(instance, wanted, before, NOTHING, own, own)


def reach(instance: Instance, meant: Settings) -> Tor:
    """A control connection to the tor of that instance. Raises TorError where it does not run, ConfigError where
    another one answers."""
    try:
        tor = connect(meant.control, timeout_s=_CONNECT_TIMEOUT_S)
    except TorError as why:
        if changeover.is_running(instance):
            raise
        raise TorError(f"{instance.unit} does not run", hint=f"systemctl start {instance.unit}") from why
    found = tor.get_info("config-file")
    if Path(found).resolve() != instance.torrc:
        tor.close()
        raise ConfigError(f"the tor at {meant.control} reads {found}, not {instance.torrc}", hint="name its --instance")
    return tor


def is_done(plan: Plan, tor: Tor, record: SetUp | None) -> bool:
    """Whether all is there already: files, running tor, record."""
    same = plan.before == plan.after and not settings.differences(settings.running(tor), plan.meant)
    reachable = plan.wanted.exit_port is None or address.is_on_this_host(VIRTUAL_ADDRESS)
    return same and reachable and record is not None and record.wanted == plan.wanted


def set_up(plan: Plan, tor: Tor, seed_path: Path, records: Records, *, timeout_s: float, report: Report) -> SetUp:
    """Do it, see it in the running tor, keep the record. Raises BentoError; then all is as it was before."""
    earlier = records.maybe_load()
    journal = Journal(
        plan.instance,
        plan.before,
        made_folder=not plan.instance.folder.exists(),
        added_address=plan.wanted.exit_port is not None and not address.is_on_this_host(VIRTUAL_ADDRESS),
        serial=secrets.token_hex(8),
    )
    process = _process(tor)
    online = _online(tor, plan.meant)
    changeover.begin(journal, records)
    try:
        with tor.events("STATUS_SERVER") as events:
            report("staging the files")
            changeover.prepare(journal, plan.after, plan.meant)
            changeover.place_key(plan.meant, seed_path)
            changeover.change(tor, journal, plan.after, plan.meant, report)
            onion = service_address(Path(plan.meant.one("DataDirectory")))
            _confirm(plan, tor, events, onion, online=online, timeout_s=timeout_s, report=report)
        record = SetUp(
            onion,
            plan.wanted.onion_port,
            str(tor.endpoint),
            plan.wanted,
            added_address=journal.added_address or (earlier is not None and earlier.added_address),
            instance=plan.instance,
            made_folder=journal.made_folder or (earlier is not None and earlier.made_folder),
            serial=journal.serial,
        )
        records.keep(record)
    except BaseException:
        tor.close()
        report("that failed: putting back what was there")
        changeover.put_back(journal, records, report, process=process)
        raise
    changeover.finish(journal, records)
    return record


def undo(plan: Plan, tor: Tor | None, record: SetUp | None, records: Records, report: Report) -> None:
    """The way back; `tor` None: it does not run. Raises BentoError; then all is as it was before."""
    journal = Journal(
        plan.instance,
        plan.before,
        undo=True,
        made_folder=record is not None and record.made_folder,
        added_address=record is not None and record.added_address,
    )
    process = _process(tor) if tor is not None else None
    changeover.begin(journal, records)
    try:
        changeover.prepare(journal, plan.after, plan.meant)
        if tor is None:
            changeover.replace(journal, plan.after)
        else:
            changeover.change(tor, journal, plan.after, plan.meant, report)
        records.forget()
    except BaseException:
        if tor is not None:
            tor.close()
        report("that failed: putting back what was there")
        changeover.put_back(journal, records, report, process=process)
        raise
    changeover.finish(journal, records)


def is_ours(instance: Instance, state: str) -> bool:
    """Whether the instance's files hold something for the box in that folder, with or without a record."""
    found = inplace.read_ours(instance).dropin
    return found is not None and maybe_owner(found) == state


def choose_orport() -> str:
    """A port for a new relay: the usual one where it is free, else one that no program is given by chance.

    Written as a number, for tor's own `auto` means another one at each start."""
    below_ephemeral = range(10_000, 32_000)
    for port in (USUAL_ORPORT, *random.sample(below_ephemeral, 50)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return str(port)
    raise ConfigError("no port is free for the relay", hint="name one: --orport PORT")


def warnings(plan: Plan, tor: Tor) -> tuple[str, ...]:
    """What the operator should know before he says yes. Raises TorError."""
    files = inplace.mean(plan.instance, plan.before)
    target, user = Endpoint.parse(plan.wanted.target).path, plan.meant.one("User")
    shut_out: tuple[str, ...] = ()
    if target is not None and not settings.may(plan.meant, "-x", target.parent):
        shut_out = (f"tor's user {user} cannot reach {target}: let it pass all folders above",)
    return (
        *advice.advise(plan.own, plan.meant, plan.wanted, tor.version),
        *shut_out,
        *advice.lost_by_reload(settings.running(tor), files),
    )


def _process(tor: Tor) -> ProcessId | None:
    return identify(int(tor.get_info("process/pid")))


def _online(tor: Tor, meant: Settings) -> bool:
    """Whether there is a network that can confirm anything."""
    return meant.one("DisableNetwork") != "1" and read_bootstrap(tor).done


def _confirm(
    plan: Plan, tor: Tor, events: Events, onion: str, *, online: bool, timeout_s: float, report: Report
) -> None:
    """Listeners, onion descriptor, exit policy, relay descriptor. (That the settings are those of the files has been
    seen at the reload.)"""
    if not online:
        report("tor is not connected to its network: nothing can be confirmed from outside")
        return
    deadline = time.monotonic() + timeout_s
    if plan.meant.is_relay and not tor.get_info("net/listeners/or"):
        raise TorError("tor does not listen on its ORPort", hint="its log says why")
    report("waiting until the directories have the onion service")
    wait_uploaded(tor, onion, timeout_s=timeout_s)
    if plan.wanted.exit_port is not None:
        report("waiting until tor states its exit policy")
        confirm_exit(tor, plan.wanted.exit_port, timeout_s=_left(deadline))
    if plan.wanted.relay is not None:
        report("waiting until a directory has accepted the relay")
        _wait_accepted(tor, events, deadline, timeout_s)


def _wait_accepted(tor: Tor, events: Events, deadline: float, timeout_s: float) -> None:
    """An authority has taken the descriptor; that comes after tor has found its ORPort reachable from outside."""
    trouble = ""
    while time.monotonic() < deadline:
        event = events.maybe_next(_POLL_S)
        if isinstance(event, StatusEvent) and event.action == "ACCEPTED_SERVER_DESCRIPTOR":
            return
        if isinstance(event, StatusEvent) and event.action in ("REACHABILITY_FAILED", "BAD_SERVER_DESCRIPTOR"):
            trouble = f" ({event.text.removeprefix('STATUS_SERVER ')})"
        if event is None and _is_listed(tor):
            return
    raise TorTimeout(
        f"no directory accepted the relay within {timeout_s:g} s{trouble}",
        hint="can its ORPort be reached from outside (firewall, port forwarding)? else a longer --timeout",
    )


def _is_listed(tor: Tor) -> bool:
    """Whether the consensus names it already: then it published long ago."""
    return tor.msg(f"GETINFO ns/id/{tor.get_info('fingerprint')}").ok


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 1.0)
