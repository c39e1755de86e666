"""`bento-tor policy`: write, check and show what a box is willing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.cli.ordering import box_folder, state_option
from bento_tor.errors import BentoError, ConfigError


@click.group()
def command() -> None:
    """What your box is willing to do: write it, check it, see it as clients do."""


@command.command()
@click.argument("file", default="policy.toml", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write FILE (policy.toml) with every setting, its meaning and its default. Never overwrites one."""
    from bento_tor.policy.template import render

    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(render())
    except FileExistsError as why:
        raise ConfigError(f"{file} is there already", hint="name another one") from why
    except OSError as why:
        raise ConfigError(f"cannot write {file}: {why.strerror}") from why
    ui.result(f"{file} is written: every setting is at its default")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Read FILE (a policy, or a box's settings with one), and say which line cannot be used."""
    from bento_tor.server.settings import read_policy

    policy = read_policy(file)
    if as_json:
        ui.result_json(msgspec.to_builtins(policy))
    else:
        ui.result(f"{file} can be used")


@command.command()
@click.option("--state", metavar="DIR", type=click.Path(path_type=Path), help="The box's state folder.")
@json_option
def show(state: Path | None, as_json: bool) -> None:
    """Show the policy of the running box, as its clients see it."""
    from bento_tor.client.box import connect
    from bento_tor.config import data_dir

    folder = (state or data_dir() / "box").absolute()
    with connect(f"unix:{folder / 'box.sock'}", timeout_s=10.0) as box:
        policy = box.policy()
    print_policy(msgspec.to_builtins(policy), as_json=as_json)


@command.command()
@click.argument("destination", metavar="ADDRESS[/LEN][:PORT]")
@state_option
@json_option
def block(destination: str, state: Path | None, as_json: bool) -> None:
    """Let no function connect there by exit egress, from now on; running connections are closed.

    At once on a running box, and at every start. Egress through tor leaves from other relays, and is not concerned."""
    from bento_tor.server import blocks

    folder, text = _blocking(state, destination)
    blocks.add(folder, text)
    _tell_blocks(folder, text, "blocked", as_json=as_json)


@command.command()
@click.argument("destination", metavar="ADDRESS[/LEN][:PORT]")
@state_option
@json_option
def unblock(destination: str, state: Path | None, as_json: bool) -> None:
    """Block it no more. What your policy's egress_rules and the relay's exit policy refuse stays refused."""
    from bento_tor.server import blocks

    folder, text = _blocking(state, destination)
    blocks.remove(folder, text)
    _tell_blocks(folder, text, "unblocked", as_json=as_json)


@command.command()
@state_option
@json_option
def blocked(state: Path | None, as_json: bool) -> None:
    """List what has been blocked with 'policy block'."""
    from bento_tor.server import blocks

    found = blocks.read(_known_folder(state))
    if as_json:
        ui.result_json({"blocked": found})
        return
    for text in found:
        ui.result(text)
    if not found:
        ui.say("nothing is blocked")


def _blocking(state: Path | None, destination: str) -> tuple[Path, str]:
    from bento_tor.server import blocks

    return _known_folder(state), blocks.canonical(destination)


def _known_folder(state: Path | None) -> Path:
    """A box's folder: of another one 'nothing is blocked' would be true, and no comfort."""
    folder = box_folder(state)
    if not (folder / "lock").exists():
        raise ConfigError(f"{folder} is no box's state folder", hint="name it with --state")
    return folder


def _tell_blocks(folder: Path, text: str, done: str, *, as_json: bool) -> None:
    """Have the running box, if there is one, take the file as it is now."""
    from bento_tor.server import operator

    try:
        answer = operator.maybe_ask(folder / "operator.sock", "blocks")
    except BentoError as error:
        ui.warn(f"{text} is {done} from the next start on; the running box has not taken it")
        raise error
    holds = answer is not None and answer["holds"]
    if as_json:
        ui.result_json({"destination": text, "done": done, "running": answer is not None, "in_force": holds})
        return
    ui.result(f"{text} is {done}")
    if answer is None:
        ui.say("no box runs: it holds from the next start on")
    elif not holds and done == "blocked":
        ui.say("this box offers no exit egress: it is kept for when it does")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not known" if value is None else str(value) or "-"


def print_policy(fields: dict[str, Any], *, as_json: bool) -> None:
    """For people, a line each; or as one object."""
    if as_json:
        ui.result_json(fields)
        return
    limits = {f"limits.{name}": value for name, value in fields.pop("limits").items()}
    images = {
        f"image {name}": [f"digest {facts['digest'][:16]}", f"profile {facts['profile']}", *facts["packages"]]
        for name, facts in fields.pop("found").items()
    }
    for name, value in (fields | limits | images).items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else _said(value)
        ui.result(f"{name:<25} {ui.escape(text)}")
