"""`bento-tor setup-relay`: prepare a tor for a box, or make it a relay with one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option, tor_options
from bento_tor.errors import BentoError, ConfigError

if TYPE_CHECKING:
    from bento_tor.controller.changeover import Records
    from bento_tor.controller.debian import Instance
    from bento_tor.controller.relay import Change, RelayPart, SetUp, Wanted
    from bento_tor.controller.setting_up import Plan
    from bento_tor.controller.tor import Tor

_FOR_A_RELAY = ("nickname", "orport", "contact", "bandwidth", "family", "exit_relay")


@click.command()
@click.option("--instance", metavar="NAME", help="Which of Debian's tors: tor@NAME.  [default: the default one]")
@click.option("--nickname", metavar="NAME", help="Make this tor a relay of that name.")
@click.option("--orport", metavar="[ADDRESS:]PORT|auto", help="The relay's port; auto: 9001, or another free one.")
@click.option("--contact", metavar="TEXT", help="How people reach you; public.")
@click.option("--bandwidth", metavar="RATE", help="Cap of all that this tor carries, such as '10 MBytes' a second.")
@click.option("--family", metavar="FINGERPRINT", multiple=True, help="Another relay of yours. May be repeated.")
@click.option("--exit/--non-exit", "exit_relay", default=None, help="Whether others may leave here.  [default: no]")
@click.option("--state", metavar="DIR", help="The box's state folder; its socket is where the onion service leads.")
@click.option("--target", metavar="HOST:PORT|unix:PATH", help="Lead the onion service there instead, as tor sees it.")
@click.option("--node", metavar="NAME", help="With --network: which of its tors.  [default: the first relay]")
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="The onion service's port.")
@click.option(
    "--exit-port",
    type=click.IntRange(1, 65535),
    is_flag=False,
    flag_value=23686,  # controller.relay.EXIT_PORT; the import would slow down every --help
    metavar="[PORT]",
    help="Also accept exits to the box, at 192.0.2.80:PORT.  [without PORT: 23686, where clients look]",
)
@click.option("--dry-run", is_flag=True, help="Show the change, and change nothing.")
@click.option("--undo", is_flag=True, help="Put back what was there before.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--root", metavar="DIR", default="/", help="Where Debian's layout begins: for trials below a prefix.")
@json_option
@tor_options
def command(**options: Any) -> None:
    """Give a tor what a box needs: an onion service that leads to the box's socket and, with --exit-port, an exit
    policy that opens exactly the box's virtual address. With --nickname, make it a relay first.

    A tor of Debian's on this machine gets a drop-in file: shown, verified, applied without a restart, confirmed in what
    the running tor says, and put back where anything fails. With --control (or --network) the settings go to that
    running tor alone, and last until it restarts or reads its torrc again.

    Running it twice changes nothing."""
    from bento_tor.config import data_dir

    place = Path(options["state"]).absolute() if options["state"] else data_dir() / "box"
    if options["control"] is not None or options["network_dir"] is not None:
        given = [name for name in (*_FOR_A_RELAY, "instance") if options[name] not in (None, ())]
        if given:
            name = given[0].replace("_relay", "")
            raise click.UsageError(f"--{name} needs the files of a tor on this machine: leave --control out")
        _by_control(place, options)
    else:
        _in_files(place, options)


# --- in the files of a tor of this machine ------------------------------------------------------------------------


def _in_files(place: Path, options: dict[str, Any]) -> None:
    from bento_tor.controller import changeover, debian
    from bento_tor.server.state import maybe_relay

    record = maybe_relay(place)
    if record is not None and record.instance is None:
        hint = f"--control {record.control}, or undo that first: --control {record.control} --undo"
        raise ConfigError("this box was set up by the control port of a tor", hint=hint)
    instance = debian.find(Path(options["root"]).absolute(), options["instance"])
    if record is not None and record.instance != instance:
        hint = f"--instance {record.instance.name if record.instance else ''}, or another --state"
        raise ConfigError("this box was set up on another tor", hint=hint)
    records = _records(place)
    with changeover.locked(instance):
        journal = changeover.maybe_journal(records.journal)
        interrupted = journal is not None
        if journal is not None:
            if journal.instance != instance:  # it may be at work: the lock that we have is on another one's folder
                hint = f"if none is at work, complete it: --instance {journal.instance.name} --undo"
                raise ConfigError(f"a run on {journal.instance.unit} has not ended for this box", hint=hint)
            if options["dry_run"]:
                raise ConfigError("an earlier run was interrupted", hint="run this without --dry-run, or --undo")
            changeover.recover(records, ui.say)
        if options["undo"]:
            _undo_files(instance, place, records, options, interrupted=interrupted)
        else:
            _set_up_files(instance, place, records, options)


def _records(place: Path) -> Records:
    from bento_tor.controller.changeover import Records
    from bento_tor.server.state import maybe_relay, remove_relay, write_relay

    return Records(
        place / "setup.json",
        lambda: maybe_relay(place),
        lambda record: write_relay(place, record),
        lambda: remove_relay(place),
    )


def _set_up_files(instance: Instance, place: Path, records: Records, options: dict[str, Any]) -> None:
    from bento_tor.controller import setting_up
    from bento_tor.server.state import onion_seed

    record = records.maybe_load()
    plan = setting_up.plan(instance, _wanted(place, record, options))
    with setting_up.reach(instance, plan.meant) as tor:
        warnings = setting_up.warnings(plan, tor)
        if setting_up.is_done(plan, tor, record):
            _report_files(plan, options, "nothing to do", record, warnings)
            return
        _show(plan, warnings, options)
        if options["dry_run"]:
            _report_files(plan, options, "this would change", record, warnings)
            return
        _agree("change these files and reload tor?", options)
        seed_path, timeout_s = onion_seed(place), options["timeout_s"]
        done = setting_up.set_up(plan, tor, seed_path, records, timeout_s=timeout_s, report=ui.say)
    _report_files(plan, options, "set up", done, warnings)


def _undo_files(
    instance: Instance, place: Path, records: Records, options: dict[str, Any], *, interrupted: bool
) -> None:
    from bento_tor.controller import changeover, setting_up

    record = records.maybe_load()
    if record is None and not setting_up.is_ours(instance, str(place)):
        if interrupted:  # by completing that, all has been undone
            _report_files(setting_up.plan_undo(instance, _wanted(place, None, options)), options, "undone", None, ())
            return
        raise ConfigError(f"there is nothing to undo: {place} has no record of a set-up", hint="name its --state")
    wanted = record.wanted if record is not None else _wanted(place, None, options)
    plan = setting_up.plan_undo(instance, wanted)
    _show(plan, (), options)
    if options["dry_run"]:
        _report_files(plan, options, "this would change", record, ())
        return
    _agree("take this away and reload tor?", options)
    if changeover.is_running(instance):
        with setting_up.reach(instance, plan.meant) as tor:
            setting_up.undo(plan, tor, record, records, ui.say)
    else:
        ui.say(f"{instance.unit} does not run: its files are put back")
        setting_up.undo(plan, None, record, records, ui.say)
    _report_files(plan, options, "undone", None, ())
    ui.say("the keys of the service, and of the relay, are kept in tor's data directory: the same ones next time")


def _wanted(place: Path, record: SetUp | None, options: dict[str, Any]) -> Wanted:
    """What this run asks for; what it leaves unsaid stays as the one before had it."""
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.controller.relay import Wanted

    earlier = record.wanted if record is not None else None
    target = options["target"] or (earlier.target if earlier else str(Endpoint.unix(place / "box.sock")))
    exit_port = options["exit_port"] or (earlier.exit_port if earlier else None)
    return Wanted(target, _port(earlier, options), exit_port, str(place), _relay(earlier, options))


def _port(earlier: Wanted | None, options: dict[str, Any]) -> int:
    source = click.get_current_context().get_parameter_source("port")
    unsaid = source is click.core.ParameterSource.DEFAULT
    return earlier.onion_port if earlier is not None and unsaid else int(options["port"])


def _relay(earlier: Wanted | None, options: dict[str, Any]) -> RelayPart | None:
    from bento_tor.controller.relay import RelayPart
    from bento_tor.controller.setting_up import choose_orport

    given = {name: options[name] for name in _FOR_A_RELAY if options[name] not in (None, ())}
    before = earlier.relay if earlier is not None else None
    if not given and before is None:
        return None
    if "nickname" not in given and before is None:
        raise click.UsageError(f"--{next(iter(given)).replace('_relay', '')} makes a relay: give its --nickname too")
    if given.get("orport", "auto") == "auto":
        given["orport"] = before.orport if before is not None else choose_orport()
    if "exit_relay" in given:
        given["exit"] = given.pop("exit_relay")
    return msgspec.structs.replace(before, **given) if before is not None else RelayPart(**given)


def _show(plan: Plan, warnings: tuple[str, ...], options: dict[str, Any]) -> None:
    for text in warnings:
        ui.warn(text)
    if not options["as_json"]:
        ui.result(ui.escape(plan.diff.rstrip("\n")) if plan.diff else "the files stay as they are; tor is reloaded")


def _agree(question: str, options: dict[str, Any]) -> None:
    """Ask, where there is somebody to ask."""
    if options["yes"]:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: look at --dry-run, then say --yes")
    if not click.confirm(question, err=True):
        raise BentoError("nothing was changed")


def _report_files(
    plan: Plan, options: dict[str, Any], done: str, record: SetUp | None, warnings: tuple[str, ...]
) -> None:
    relay = plan.wanted.relay
    if options["as_json"]:
        ui.result_json(
            {
                "done": done,
                "address": record.address if record is not None else "",
                "port": plan.wanted.onion_port,
                "exit": _exit_words(plan.wanted.exit_port),
                "relay": None if relay is None else {"nickname": relay.nickname, "orport": relay.orport},
                "files": [str(plan.instance.torrc), str(plan.instance.dropin)],
                "diff": plan.diff if done != "nothing to do" else "",
                "warnings": list(warnings),
            }
        )
        return
    ui.say(done)
    if record is None or done in ("this would change", "undone"):
        return
    if relay is not None:
        ui.result(f"relay  {relay.nickname}, ORPort {relay.orport}")
    _print_ways(record.address, plan.wanted.onion_port, plan.wanted.exit_port)


def _exit_words(exit_port: int | None) -> str | None:
    return f"192.0.2.80:{exit_port}" if exit_port else None


def _print_ways(address: str, port: int, exit_port: int | None) -> None:
    ui.result(f"onion  {address}, port {port}")
    if exit_port:
        ui.result(f"exit   {_exit_words(exit_port)}")


# --- by the control port of a tor whose files are elsewhere -------------------------------------------------------


def _by_control(place: Path, options: dict[str, Any]) -> None:
    with _connect(options) as tor:
        if options["undo"]:
            _undo_settings(tor, place, options)
        else:
            _set_settings(tor, place, options)


def _connect(options: dict[str, Any]) -> Tor:
    from bento_tor.controller.connection import connect
    from bento_tor.controller.endpoints import Endpoint
    from bento_tor.network.network import Network

    timeout_s = min(options["timeout_s"], 10.0)
    if options["control"] is not None:
        return connect(Endpoint.parse(options["control"]), timeout_s=timeout_s)
    network = Network.load(Path(options["network_dir"]))
    node = network.node(options["node"]) if options["node"] else network.relays[0]
    return connect(node.control, timeout_s=timeout_s)


def _set_settings(tor: Tor, place: Path, options: dict[str, Any]) -> None:
    from bento_tor.controller import address, relay
    from bento_tor.controller.onion import load_or_mint_seed
    from bento_tor.server.state import maybe_relay, onion_seed, write_relay

    found = relay.read_settings(tor)
    earlier = maybe_relay(place)
    if earlier is not None and earlier.instance is not None:
        raise ConfigError("this box was set up in the files of a tor", hint="leave --control out")
    wanted = _wanted(place, earlier, options)
    change = relay.plan(found, wanted)
    if change.empty and earlier is not None:
        _report_change(change, wanted, earlier.address, "nothing to do", options)
        return
    if options["dry_run"]:
        _report_change(change, wanted, "", "this would change", options)
        return
    _agree("change the running tor's settings?", options)
    added_address = wanted.exit_port is not None and address.add_to_lo(relay.VIRTUAL_ADDRESS)
    # What was there before the first set-up is what --undo puts back, however often this runs.
    before = earlier.before if earlier is not None and earlier.before is not None else found
    added_address = added_address or (earlier is not None and earlier.added_address)
    try:
        relay.place_key(found, load_or_mint_seed(onion_seed(place)))
        onion = relay.apply_and_learn(tor, found, change, timeout_s=options["timeout_s"])
        record = relay.SetUp(onion, wanted.onion_port, str(tor.endpoint), wanted, before, added_address=added_address)
        write_relay(place, record)
        with ui.progress("waiting until tor confirms it"):
            relay.confirm(tor, onion, wanted, timeout_s=options["timeout_s"])
    except BaseException:
        ui.say("that failed: putting back what was there")
        _put_back(tor, place, before, wanted, added_address=added_address)
        raise
    _report_change(change, wanted, onion, "set up", options)


def _undo_settings(tor: Tor, place: Path, options: dict[str, Any]) -> None:
    from bento_tor.controller import relay
    from bento_tor.server.state import maybe_relay

    record = maybe_relay(place)
    if record is None or record.before is None:
        hint = "name its --state" if record is None else "this box was set up in files: leave --control out"
        raise ConfigError(f"there is nothing to undo: {place} has no record of a set-up", hint=hint)
    change = relay.plan_undo(relay.read_settings(tor), record.before, record.wanted)
    if options["dry_run"]:
        _report_change(change, record.wanted, record.address, "this would change", options)
        return
    _agree("put the running tor's settings back?", options)
    _put_back(tor, place, record.before, record.wanted, added_address=record.added_address)
    _report_change(change, record.wanted, record.address, "undone", options)
    ui.say(f"the service's key is kept in tor's data directory ({relay.SERVICE_DIR}): the same address next time")


def _put_back(tor: Tor, state: Path, before: Any, wanted: Wanted, *, added_address: bool) -> None:
    from bento_tor.controller import address, relay
    from bento_tor.server.state import remove_relay

    relay.apply(tor, relay.plan_undo(relay.read_settings(tor), before, wanted))
    remove_relay(state)
    if added_address:
        address.remove_from_lo(relay.VIRTUAL_ADDRESS)


def _report_change(change: Change, wanted: Wanted, address: str, done: str, options: dict[str, Any]) -> None:
    if options["as_json"]:
        ui.result_json(
            {
                "done": done,
                "address": address,
                "port": wanted.onion_port,
                "exit": _exit_words(wanted.exit_port),
                "removed": list(change.removed),
                "added": list(change.added),
            }
        )
        return
    ui.say(f"{done}:" if not change.empty else done)
    for line in change.removed:
        ui.result(f"- {line}")
    for line in change.added:
        ui.result(f"+ {line}")
    if address and done != "undone":
        _print_ways(address, wanted.onion_port, wanted.exit_port)
