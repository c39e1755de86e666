"""`bento-tor function check`: everything that is wrong with a function, before it travels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.client.calls import read_source
from bento_tor.cli.client.reach import Reach, pass_reach
from bento_tor.cli.completion import complete_box, complete_source
from bento_tor.cli.function.folder import images_option
from bento_tor.cli.function.terms import say_beyond_defaults
from bento_tor.cli.options import json_option
from bento_tor.client import checking
from bento_tor.client.checking import Checked, ImageFacts, Surroundings
from bento_tor.errors import ConfigError, SandboxError
from bento_tor.policy.document import Found, Policy
from bento_tor.sandbox import images

_WRONG = ConfigError.exit_code


@click.command()
@click.argument("file", shell_complete=complete_source)
@click.option(
    "--box", "box_address", metavar="ADDRESS", shell_complete=complete_box, help="Hold it against this box's policy."
)
@click.option("--policy", "policy_file", metavar="FILE", help="Hold it against the policy in this file.")
@images_option
@json_option
@pass_reach
def command(
    file: str, box_address: str | None, policy_file: str | None, images_dir: Path, as_json: bool, reach: Reach
) -> None:
    """Look FILE (or a function that ships) over, without running it: its manifest, its syntax, its entry, its imports,
    and what it uses of api. Every finding at once, with its line; exit code 3 where one is an error."""
    if box_address and policy_file:
        raise click.UsageError("name a policy by --box or by --policy, not by both")
    name, text = read_source(file)
    maybe_policy = None
    if policy_file:
        maybe_policy = _policy_in(Path(policy_file), images_dir)
    elif box_address:
        with ui.progress(f"asking {box_address}"), reach.box(box_address, remember=False) as box:
            maybe_policy = box.policy()
    checked = checking.check(name, text, Surroundings(partial(_maybe_facts, images_dir), maybe_policy))
    if as_json:
        manifest, findings = msgspec.to_builtins((checked.maybe_manifest, checked.findings))
        ui.result_json({"file": file, "fits": checked.fits, "manifest": manifest, "findings": findings})
    else:
        _tell(file, checked, against_policy=maybe_policy is not None)
    if not checked.fits:
        raise click.exceptions.Exit(_WRONG)


def _tell(file: str, checked: Checked, *, against_policy: bool) -> None:
    for finding in checked.findings:
        place = f"{file}:{finding.line}" if finding.line else file
        ui.result(ui.escape(f"{place}: {finding.grade}: {finding.text}"))
    if checked.fits:
        ui.say(f"{file} can be used{', and fits that policy' if against_policy else ''}")
        if checked.maybe_manifest is not None and not against_policy:
            say_beyond_defaults(checked.maybe_manifest)


def _policy_in(file: Path, images_dir: Path) -> Policy:
    """With what the images on this machine hold, as a box that serves with it would tell."""
    from bento_tor.server.settings import read_policy

    policy = read_policy(file)
    built = [image for image in images.built(images_dir) if image.name in policy.images]
    found = {image.name: Found(image.digest, image.profile, images.package_names(image)) for image in built}
    return msgspec.structs.replace(policy, found=found)


def _maybe_facts(images_dir: Path, name: str) -> ImageFacts | None:
    try:
        image = images.load(images_dir, name)
    except SandboxError:
        return None
    programs = image.profile != "python"
    return ImageFacts(images.package_names(image), partial(images.can_import, image), programs)
