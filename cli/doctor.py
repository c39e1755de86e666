"""`bento-tor doctor`: what this host can enforce, found by trying it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bento_tor.cli import ui
from bento_tor.cli.options import json_option
from bento_tor.errors import SandboxError

# A table for a user id that nothing has: to make and remove it changes nothing.
_NOBODYS_UID = 2**31 - 2

if TYPE_CHECKING:
    from bento_tor.sandbox.layers import Layer


@click.command()
@click.option("--images", metavar="DIR", help="Where images are.")
@json_option
def command(images: str | None, as_json: bool) -> None:
    """Try every layer of the sandbox on this machine, in real sandboxes, and say which hold.

    It fails (exit code 1) where one is missing without which no stranger's code may run; `serve` would refuse too."""
    from bento_tor.sandbox import images as image_store
    from bento_tor.sandbox import layers
    from bento_tor.sandbox.jail import Jail

    folder = Path(images).absolute() if images else image_store.default_dir()
    with ui.progress("trying the sandbox"), Jail(image_store.load(folder, "python")) as jail:
        found = [*layers.probe(jail), _kernel_rules()]
    missing = layers.missing(tuple(found))
    if as_json:
        ui.result_json(
            {
                "layers": {layer.name: {"effective": layer.effective, "how": layer.how} for layer in found},
                "missing": [layer.name for layer in missing],
                "root": os.geteuid() == 0,
            }
        )
    else:
        for layer in found:
            essential = " (essential)" if layer in missing else ""
            ui.result(f"{'ok' if layer.effective else 'no':<3} {layer.name:<14} {layer.how}{essential}")
    if missing:
        raise SandboxError(
            f"a box must not serve here: {', '.join(layer.name for layer in missing)} cannot be enforced",
            hint="docs/threat-model.md says what each layer is for",
        )


def _kernel_rules() -> Layer:
    """Whether the kernel would refuse what a fault of the egress broker let out."""
    from bento_tor.egress import nft
    from bento_tor.sandbox.layers import Layer

    if os.geteuid() != 0:
        return Layer("kernel-rules", False, "egress is judged by the broker alone: only root may load rules")
    try:
        nft.unload(_NOBODYS_UID)
    except SandboxError as error:
        return Layer("kernel-rules", False, f"egress is judged by the broker alone: {error.message}")
    return Layer("kernel-rules", True, "the kernel judges egress too")
