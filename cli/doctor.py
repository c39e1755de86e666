"""`bento-tor doctor`: what this host can enforce, found by trying it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.config import data_dir
from bento_tor.errors import BentoError, SandboxError

# A table for a user id that nothing has: to make and remove it changes nothing.
_NOBODYS_UID = 2**31 - 2
_GRADES = {"ok": "ok", "warn": "!", "no": "no"}

if TYPE_CHECKING:
    from bento_tor.controller.findings import Finding
    from bento_tor.controller.relay import SetUp
    from bento_tor.sandbox.hostile import Row
    from bento_tor.sandbox.images import Image
    from bento_tor.sandbox.layers import Layer
    from bento_tor.server.rehearsal import Played
    from bento_tor.server.settings import BoxConfig


class _Case(msgspec.Struct, frozen=True):
    """A row that was played. `problems`: how what came of it differs from what is expected."""

    image: str
    number: int
    name: str
    outcome: str
    said: tuple[str, ...]
    problems: tuple[str, ...]


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="The box's settings: what they claim must hold.")
@click.option("--images", metavar="DIR", help="Where images are.")
@click.option("--rlimits-only", is_flag=True, help="Claim no cgroups, as `serve --rlimits-only`.")
@click.option("--hostile", is_flag=True, help="Also play hostile functions, and see each come out as it must.")
@click.option("--state", metavar="DIR", help="The box's state folder: what setup-relay did for it.")
@click.option("--control", metavar="HOST:PORT|unix:PATH", envvar="BENTO_TOR_CONTROL", help="Tor's control port.")
@click.option("--tor/--no-tor", "maybe_tor", default=None, help="Look at tor too.  [default: where a box needs one]")
@json_option
def command(
    config_file: str | None,
    images: str | None,
    rlimits_only: bool,
    hostile: bool,
    state: str | None,
    control: str | None,
    maybe_tor: bool | None,
    as_json: bool,
) -> None:
    """Try every layer of the sandbox on this machine, in real sandboxes, and say which hold; and look at tor, where
    there is one.

    It fails (exit code 1) where one is missing without which no stranger's code may run; `serve` would refuse too.
    With --config or --hostile, also where one is missing that the box's settings claim. And where tor is not as the box
    needs it, or in danger."""
    from bento_tor.sandbox import images as image_store
    from bento_tor.sandbox import layers
    from bento_tor.sandbox.jail import Jail

    config = _config(config_file, images, rlimits_only=rlimits_only)
    folder = Path(config.images).absolute() if config.images else image_store.default_dir()
    found = [image_store.load(folder, name) for name in config.policy.images]
    with ui.progress("trying the sandbox"), Jail(*found) as jail:
        tried = (*layers.probe(jail), _kernel_rules())
    claimed = _claims(config) if config_file or hostile else frozenset()
    missing = layers.missing(tried, claimed)
    if not as_json:
        for layer in tried:
            ui.result(_layers_line(layer, missing=layer in missing))
    cases = _play_all(found, quiet=as_json) if hostile else []
    maybe_findings = _look_at_tor(config, state, control, maybe_tor, by_config=config_file is not None)
    if as_json:
        ui.result_json(_report(tried, missing, claimed, cases if hostile else None, maybe_findings))
    else:
        for line in _tor_lines(maybe_findings):
            ui.result(line)
    _judge(missing, cases, maybe_findings or ())


def _look_at_tor(
    config: BoxConfig, state: str | None, control: str | None, maybe_tor: bool | None, *, by_config: bool
) -> tuple[Finding, ...] | None:
    """What was found; None where nobody looked."""
    from bento_tor.server import tor_check

    if maybe_tor is False:
        return None
    maybe_record = _maybe_record(state or config.state)
    needed = tor_check.needed(config, maybe_record, control or "", by_config=by_config)
    if not (needed or maybe_tor or tor_check.is_there()):
        return None
    with ui.progress("looking at tor"):
        return tor_check.look(config, maybe_record, control or "")


def _maybe_record(state: str) -> SetUp | None:
    """What setup-relay did for the box of that folder, or of the default one."""
    from bento_tor.server.state import maybe_relay

    try:
        return maybe_relay(Path(state) if state else data_dir() / "box")
    except RuntimeError:  # a user without a home has no default folder
        return None


def _tor_lines(maybe_findings: tuple[Finding, ...] | None) -> Iterator[str]:
    for finding in maybe_findings or ():
        yield f"{_GRADES[finding.grade]:<3} tor {finding.about:<10} {ui.escape(finding.words)}"
        if finding.hint:
            yield f"{'':19}{ui.escape(finding.hint)}"


def _config(config_file: str | None, images: str | None, *, rlimits_only: bool) -> BoxConfig:
    from bento_tor.server.settings import BoxConfig, read_config

    config = read_config(Path(config_file)) if config_file else BoxConfig()
    config = msgspec.structs.replace(config, images=images) if images else config
    return msgspec.structs.replace(config, limits="rlimits-only") if rlimits_only else config


def _claims(config: BoxConfig) -> frozenset[str]:
    """The layers that a box with these settings says it has."""
    from bento_tor.sandbox import layers

    claimed = layers.BY_CGROUPS if config.limits == "cgroups" else frozenset()
    # Without root the broker alone judges, and the box says no more.
    return claimed | ({layers.KERNEL_RULES} if config.policy.egress and os.geteuid() == 0 else frozenset())


def _play_all(images: list[Image], *, quiet: bool) -> list[_Case]:
    """The quick rows, in each image, with a line for each as it ends."""
    from bento_tor.sandbox.hostile_browser import rows_for
    from bento_tor.server.rehearsal import Rehearsal

    cases = []
    for image in images:
        with Rehearsal(image) as rehearsal:
            for row in rows_for(image):
                if _is_for_here(row):
                    cases.append(_case(image, row, rehearsal.play(row), cgroups="memory" in rehearsal.effective))
                    if not quiet:
                        ui.result(_line(cases[-1], name_image=len(images) > 1))
    return cases


def _layers_line(layer: Layer, *, missing: bool) -> str:
    from bento_tor.sandbox.layers import ESSENTIAL

    why = (" (essential)" if layer.name in ESSENTIAL else " (claimed)") if missing else ""
    return f"{'ok' if layer.effective else 'no':<3} {layer.name:<14} {layer.how}{why}"


def _is_for_here(row: Row) -> bool:
    return row.quick and (platform.machine() == "x86_64" or not row.native)


def _case(image: Image, row: Row, played: Played, *, cgroups: bool) -> _Case:
    problems = played.problems(row, root=os.geteuid() == 0, cgroups=cgroups, browser=bool(image.browser))
    return _Case(image.name, row.number, row.name, played.word, played.said, tuple(problems))


def _line(case: _Case, *, name_image: bool) -> str:
    where = f"{case.image} " if name_image else ""
    outcome = "; ".join(case.problems) or " ".join([case.outcome, *case.said])
    return f"{'no' if case.problems else 'ok':<3} {where}{case.number:02} {case.name:<40} {outcome}"


def _report(
    tried: tuple[Layer, ...],
    missing: list[Layer],
    claimed: frozenset[str],
    maybe_cases: list[_Case] | None,
    maybe_findings: tuple[Finding, ...] | None,
) -> dict[str, object]:
    report: dict[str, object] = {
        "layers": {layer.name: {"effective": layer.effective, "how": layer.how} for layer in tried},
        "missing": [layer.name for layer in missing],
        "claimed": sorted(claimed),
        "root": os.geteuid() == 0,
    }
    if maybe_cases is not None:
        report["cases"] = msgspec.to_builtins(maybe_cases)
    if maybe_findings is not None:
        report["tor"] = msgspec.to_builtins(maybe_findings)
    return report


def _judge(missing: list[Layer], cases: list[_Case], findings: Sequence[Finding] = ()) -> None:
    """Raise SandboxError, or BentoError for tor alone, unless everything is as it must be."""
    reasons = [f"{', '.join(layer.name for layer in missing)} cannot be enforced"] if missing else []
    if failed := sorted({f"{case.number} ({case.name})" for case in cases if case.problems}):
        reasons.append(f"hostile functions were not held as they must be: {', '.join(failed)}")
    if reasons:
        raise SandboxError(
            f"a box must not serve here: {'; '.join(reasons)}",
            hint="docs/threat-model.md says what each layer is for",
        )
    if wrong := [finding.words for finding in findings if finding.grade == "no"]:
        raise BentoError(f"tor is not as a box needs it: {'; '.join(wrong)}", hint="the lines above say what to do")


def _kernel_rules() -> Layer:
    """Whether the kernel would refuse what a fault of the egress broker let out."""
    from bento_tor.egress import nft
    from bento_tor.sandbox.layers import KERNEL_RULES, Layer

    if os.geteuid() != 0:
        return Layer(KERNEL_RULES, False, "egress is judged by the broker alone: only root may load rules")
    try:
        nft.unload(_NOBODYS_UID)
    except SandboxError as error:
        return Layer(KERNEL_RULES, False, f"egress is judged by the broker alone: {error.message}")
    return Layer(KERNEL_RULES, True, "the kernel judges egress too")
