"""A running tor taken from one state of its files to another, and back where anything fails.

    verify     tor reads a copy of the new files
    journal    what was there, before the first change: who comes after a kill -9 puts it back
    stage      the new files, beside the old ones
    try        RESETCONF: tor takes the new settings whole or not at all. A reload of settings that it cannot act on
               (a port that is taken, say) would end it; what it has acted on, it can
    replace    one rename a file, in an order in which tor can start at any time
    reload     SIGNAL RELOAD
    confirm    in what the running tor says
    record     in the box's state: from here on it is done; then the journal goes

Any failure: the old files, a reload of them, no journal. Where tor cannot be told at the moment, the journal stays.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bento_tor.controller import address, debian, inplace, rewrite, settings
from bento_tor.controller.connection import connect
from bento_tor.controller.debian import Instance
from bento_tor.controller.dropin import Ours
from bento_tor.controller.onion import load_or_mint_seed, maybe_place_key
from bento_tor.controller.processes import ProcessId, find_by_arguments
from bento_tor.controller.relay import SERVICE_DIR, VIRTUAL_ADDRESS, SetUp
from bento_tor.controller.settings import Settings
from bento_tor.controller.tor import Tor
from bento_tor.errors import ConfigError, TorError

_RESTART_WAIT_S = 10.0
_POLL_S = 0.1

Report = Callable[[str], None]


class Journal(msgspec.Struct, frozen=True):
    """A change that is under way, and what was there. `made_folder`, `added_address`: this run made them, or is to take
    away what an earlier one made."""

    instance: Instance
    before: Ours
    undo: bool = False
    made_folder: bool = False
    added_address: bool = False
    serial: str = ""


@dataclass(frozen=True)
class Records:
    """Where word of a set-up is kept: the journal's file, and the box's record."""

    journal: Path
    maybe_load: Callable[[], SetUp | None]
    keep: Callable[[SetUp], None]
    forget: Callable[[], None]


@contextmanager
def locked(instance: Instance) -> Iterator[None]:
    """One run at a time for each instance. The lock is on the folder of its torrc: no file is left. Raises
    ConfigError."""
    fd = os.open(instance.torrc.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as why:
        raise ConfigError(
            f"another setup-relay is at work on {instance.unit}", hint="wait until it has ended, then try again"
        ) from why
    finally:
        os.close(fd)


def maybe_journal(path: Path) -> Journal | None:
    """The change that was left under way, if one was. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path} cannot be used: {why}", hint="it tells what an interrupted run had begun") from why


def begin(journal: Journal, records: Records) -> None:
    """Write down what is there, before the first change. Raises ConfigError."""
    try:
        records.journal.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    except OSError as why:
        raise rewrite.unwritable(records.journal.parent, why) from why
    rewrite.write(records.journal, msgspec.json.encode(journal), like=None)


def prepare(journal: Journal, after: Ours, meant: Settings) -> None:
    """Stage the files, and see that tor's user can read them. Raises ConfigError."""
    instance = journal.instance
    inplace.stage(instance, after)
    staged = [rewrite.staged(path) for path in (instance.dropin, instance.torrc)]
    settings.check_readable(meant, [path for path in staged if path.exists()])
    if journal.added_address and not journal.undo:
        address.add_to_lo(VIRTUAL_ADDRESS)


def change(tor: Tor, journal: Journal, after: Ours, meant: Settings, report: Report) -> None:
    """Try, replace, reload. Raises BentoError; the way back is the caller's (`put_back`)."""
    report("trying the settings on the running tor")
    lines = settings.changes(settings.running(tor), meant)
    if lines:
        tor.set_conf(lines, reset=True)
    report("replacing the files")
    replace(journal, after)
    report("reloading tor")
    reload(tor, journal.instance, meant)


def replace(journal: Journal, after: Ours) -> None:
    """The staged files take their places. Raises ConfigError."""
    inplace.put_in_place(journal.instance, after, remove_folder=journal.undo and journal.made_folder)


def reload(tor: Tor, instance: Instance, meant: Settings) -> None:
    """Have tor read its files again, and see that it lives and has them. Raises TorError; ConfigError where the files
    would end it, and then it is not told."""
    if settings.differences(settings.read(instance), meant):
        raise ConfigError(f"{instance.torrc} was changed meanwhile", hint="try again")
    settings.check_readable(meant, [instance.torrc, *instance.folder.glob("*.conf")])
    tor.ask("SIGNAL RELOAD")
    # tor answers before it reads; the next command is answered after.
    wrong = settings.differences(settings.running(tor), meant)
    if wrong:
        raise TorError(f"after the reload tor does not say what its files say: {', '.join(wrong)}")


def finish(journal: Journal, records: Records) -> None:
    """The change is done, and the record says so: what is left over goes, the journal last."""
    inplace.discard(journal.instance)
    if journal.undo and journal.added_address and address.is_on_this_host(VIRTUAL_ADDRESS):
        address.remove_from_lo(VIRTUAL_ADDRESS)
    rewrite.remove(records.journal)


def place_key(meant: Settings, seed_path: Path) -> None:
    """Give our service a key that we know, before tor makes one of its own: only so can the box sign its policy.
    Raises ConfigError."""
    maybe_place_key(Path(meant.one("DataDirectory")) / SERVICE_DIR, load_or_mint_seed(seed_path))


def put_back(journal: Journal, records: Records, report: Report, *, process: ProcessId | None = None) -> None:
    """The old files and the old running state. `process`: the tor that ran before, where that is known.

    Raises TorError where the files are back and tor cannot be told: the journal stays then."""
    instance = journal.instance
    inplace.restore(instance, journal.before, remove_folder=journal.made_folder and not journal.undo)
    if journal.added_address and not journal.undo and address.is_on_this_host(VIRTUAL_ADDRESS):
        address.remove_from_lo(VIRTUAL_ADDRESS)
    report("the old files are back")
    old = inplace.mean(instance, journal.before)
    _clear_half_key(Path(old.one("DataDirectory")) / SERVICE_DIR)
    if not _told(instance, old):
        if is_running(instance, process):
            raise TorError(
                f"the old files are back, but the running {instance.unit} cannot be told",
                hint="as soon as it answers again, run setup-relay --undo: it completes this",
            )
        # tor has ended: what it starts with are the old files.
        _start_again(instance, old, report)
    rewrite.remove(records.journal)


def is_running(instance: Instance, process: ProcessId | None = None) -> bool:
    """Whether a tor of that instance lives, whether or not it answers."""
    return process.alive if process is not None else bool(find_by_arguments(instance.torrc_path, program="tor"))


def recover(records: Records, report: Report) -> None:
    """Complete what an interrupted run had begun: where it had got as far as the record it is done, else all is put
    back. Raises BentoError."""
    rewrite.remove(rewrite.staged(records.journal))
    journal = maybe_journal(records.journal)
    if journal is None:
        return
    report("an earlier run was interrupted: completing it")
    record = records.maybe_load()
    done = record is None if journal.undo else record is not None and record.serial == journal.serial
    if done:
        finish(journal, records)
    else:
        put_back(journal, records, report)


def _told(instance: Instance, old: Settings) -> bool:
    """Whether a tor that runs has the old settings, or has been made to read them."""
    try:
        with connect(old.control, timeout_s=5.0) as tor:
            if settings.differences(settings.running(tor), old):
                reload(tor, instance, old)
    except TorError:
        return False
    return True


def _start_again(instance: Instance, old: Settings, report: Report) -> None:
    """tor has died of what we did, or meanwhile: the service manager starts it, or is asked to."""
    report(f"{instance.unit} does not run")
    deadline = time.monotonic() + _RESTART_WAIT_S
    asked = debian.start(instance)
    while asked or is_running(instance):
        with suppress(TorError):
            connect(old.control, timeout_s=1.0).close()
            report(f"{instance.unit} runs again")
            return
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    report(f"its files are the old ones; start it with 'systemctl start {instance.unit}'")


def _clear_half_key(folder: Path) -> None:
    """A key that an interrupted run was about to place: without `hostname` tor has never used that folder."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        with os.scandir(fd) as entries:
            names = {entry.name for entry in entries}
        if names <= {"hs_ed25519_secret_key", "hs_ed25519_public_key"}:
            # By descriptors: tor's user owns the folder, and must not be able to lead root's removing elsewhere.
            for name in names:
                os.unlink(name, dir_fd=fd)
            folder.rmdir()
    finally:
        os.close(fd)
