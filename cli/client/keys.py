"""`bento-tor client keys`: what the keyring holds, and carrying it to another machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from bento_tor.cli import ui
from bento_tor.cli.client.reach import stdin_is_terminal
from bento_tor.cli.completion import complete_forgettable, complete_kept
from bento_tor.cli.options import json_option
from bento_tor.client import keyring
from bento_tor.client.keyring import RUNNING, Keyring
from bento_tor.errors import ConfigError


@click.group()
def command() -> None:
    """What your keyring holds: the tokens of functions and sessions, and the boxes whose policies you accepted."""


passphrase_option = click.option(
    "--passphrase-file", metavar="FILE", help="Take the passphrase from the first line of FILE, or of - (input)."
)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The functions, sessions and boxes in your keyring. Never a token."""
    ring = keyring.read()
    functions: list[dict[str, Any]] = [
        {"name": name, "box": kept.box, "entry": kept.entry or None, "can_shutdown": kept.shutdown is not None}
        for name, kept in sorted(ring.functions.items())
    ]
    sessions: list[dict[str, Any]] = [
        {"name": name, "box": kept.box, "function": kept.function or None, "state": kept.state}
        for name, kept in sorted(ring.sessions.items())
    ]
    boxes = [_box(ring, address) for address in ring.boxes()]
    if as_json:
        ui.result_json({"functions": functions, "sessions": sessions, "boxes": boxes})
        return
    if not functions and not sessions and not boxes:
        ui.say("your keyring is empty: 'bento-tor client upload' fills it")
    for row in functions:
        ui.result(ui.escape(f"function  {row['name']:<20} {row['box']}"))
    for row in sessions:
        ui.result(ui.escape(f"session   {row['name']:<20} {row['box']}  {row['state']}"))
    for row in boxes:
        said = "accepted" if row["policy"] else "not seen"
        ui.result(ui.escape(f"box       {row['box']}  policy {said}{', signed' if row['signed'] else ''}"))


def _box(ring: Keyring, address: str) -> dict[str, Any]:
    digest = ring.policies.get(address)
    return {"box": address, "policy": digest.hex() if digest else None, "signed": address in ring.signed}


@command.command()
@click.argument("old", shell_complete=complete_kept)
@click.argument("new")
@json_option
def rename(old: str, new: str, as_json: bool) -> None:
    """Give the function or session OLD the name NEW. Only your keyring knows these names."""
    keyring.check_name(new)
    with keyring.changing() as ring:
        if new in ring.functions or new in ring.sessions:
            raise ConfigError(f"{new!r} is the name of something else", hint="choose another, or 'keys forget' that")
        if old in ring.functions:
            ring.functions[new] = ring.functions.pop(old)
            for name, kept in ring.sessions.items():
                if kept.function == old:
                    ring.sessions[name] = structs.replace(kept, function=new)
        elif old in ring.sessions:
            ring.sessions[new] = ring.sessions.pop(old)
        else:
            raise _unknown(old)
    if as_json:
        ui.result_json({"old": old, "new": new})
    else:
        ui.result(f"{old} is {new} now")


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, shell_complete=complete_forgettable)
@click.option("--ended", is_flag=True, help="Also every session that has ended, with what it printed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def forget(names: tuple[str, ...], ended: bool, yes: bool, as_json: bool) -> None:
    """Forget functions, sessions or boxes (by address). Only here: at its box a function stays.

    Without its tokens nobody can use or erase it: 'client shutdown' erases it there first. A box that is
    forgotten is a new one when you meet it again: it may have another policy, and need not sign it."""
    if not names and not ended:
        raise click.UsageError("name something, or say --ended")
    ring = keyring.read()
    for name in names:
        if not _holds(ring, name):
            raise _unknown(name)
    _confirm([name for name in names if _is_precious(ring, name)], yes=yes)
    gone = list(names)
    with keyring.changing() as ring:
        if ended:
            gone += [key for key, kept in ring.sessions.items() if kept.state != RUNNING and key not in gone]
        for name in gone:
            ring.forget(name)
    if as_json:
        ui.result_json({"forgotten": gone})
    else:
        ui.result(f"forgotten: {', '.join(gone) or 'nothing'}")


def _holds(ring: Keyring, name: str) -> bool:
    return name in ring.functions or name in ring.sessions or name in {*ring.policies, *ring.signed, *ring.pins}


def _is_precious(ring: Keyring, name: str) -> bool:
    """Whether something is at a box that nobody could use any more."""
    return name in ring.functions or (name in ring.sessions and ring.sessions[name].state == RUNNING)


def _confirm(names: list[str], *, yes: bool) -> None:
    if not names or yes:
        return
    said = f"{', '.join(names)}: still at a box, and nobody could use or erase it without these tokens"
    if not stdin_is_terminal():
        raise ConfigError(said, hint="'client shutdown' or 'client close' first; or --yes")
    ui.warn(said)
    click.confirm("forget the tokens", abort=True, err=True)


@command.command()
@click.argument("file")
@click.option("--plain", is_flag=True, help="Do not seal it: whoever reads FILE can use and erase your functions.")
@passphrase_option
@json_option
def export(file: str, plain: bool, passphrase_file: str | None, as_json: bool) -> None:
    """Write the whole keyring into FILE, sealed under a passphrase. Never overwrites one."""
    from bento_tor.client import export as exports

    if plain and passphrase_file:
        raise click.UsageError("--plain needs no passphrase")
    ring = keyring.read()
    if os.path.lexists(file):
        raise ConfigError(f"{file} is there already", hint="name another one")
    data = exports.write(
        ring,
        None
        if plain
        else read_passphrase(passphrase_file, confirm=True, if_empty="--plain makes a file that is not sealed"),
    )
    try:
        # 0600 from its first byte on: a reader who opens it early keeps it open.
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why
    facts = {"functions": len(ring.functions), "sessions": len(ring.sessions), "boxes": len(ring.boxes())}
    if as_json:
        ui.result_json({"file": file, "sealed": not plain, **facts})
    else:
        counts = ", ".join(f"{number} {what}" for what, number in facts.items())
        ui.result(f"{file}: {counts}{'' if plain else ', sealed'}")


@command.command("import")
@click.argument("file")
@passphrase_option
@json_option
def import_(file: str, passphrase_file: str | None, as_json: bool) -> None:
    """Take what FILE holds into your keyring. What is there stays; a name that is taken gets a number."""
    from bento_tor.client import export as exports

    try:
        with Path(file).open("rb") as opened:
            data = opened.read(exports.MAX_FILE_BYTES)
    except OSError as why:
        raise ConfigError(f"cannot read {file}: {why.strerror}") from why
    theirs = exports.read(data, lambda: read_passphrase(passphrase_file, confirm=False))
    for name in (*theirs.functions, *theirs.sessions):
        keyring.check_name(name)
    with keyring.changing() as ring:
        done = exports.merge(ring, theirs)
    for address in done.policies_differ:
        ui.warn(f"the other keyring knows another policy of {address}: yours stays")
    if as_json:
        ui.result_json(
            {"added": done.added, "renamed": done.renamed, "known": done.known, "differ": done.policies_differ}
        )
        return
    for name in done.added:
        ui.result(ui.escape(f"added    {name}"))
    for name, new in done.renamed.items():
        ui.result(ui.escape(f"added    {name} as {new}: the name was taken"))
    for name in done.known:
        ui.result(ui.escape(f"known    {name}"))


def read_passphrase(maybe_file: str | None, *, confirm: bool, if_empty: str = "") -> str:
    """The first line of a file or of standard input (`-`), or what is typed. `if_empty`: the hint where it is empty.

    Raises ConfigError."""
    if maybe_file == "-":
        text = sys.stdin.readline()
    elif maybe_file is not None:
        try:
            with Path(maybe_file).open(encoding="utf-8", errors="surrogateescape") as opened:
                text = opened.readline(4096)
        except OSError as why:
            raise ConfigError(f"cannot read {maybe_file}: {why.strerror}") from why
    elif stdin_is_terminal():
        text = click.prompt("passphrase", hide_input=True, err=True, confirmation_prompt=confirm)
    else:
        raise ConfigError("there is no passphrase", hint="give it with --passphrase-file FILE, or - for standard input")
    text = text.rstrip("\r\n")
    if not text:
        raise ConfigError("the passphrase is empty", hint=if_empty)
    return text


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"your keyring has no {name!r}", hint="'bento-tor client keys list' shows what it has")
