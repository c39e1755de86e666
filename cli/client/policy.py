"""`bento-tor client policy`: what a box is willing to do."""

from __future__ import annotations

import click
import msgspec

from bento_tor.cli import ui
from bento_tor.cli.client.reach import Reach, box_option, pass_reach
from bento_tor.cli.options import json_option
from bento_tor.cli.policy import print_policy


@click.command()
@box_option
@json_option
@pass_reach
def command(box_address: str, as_json: bool, reach: Reach) -> None:
    """Fetch and print the policy of a box, its digest, and whether the onion address signed it.

    Two users who see different digests at the same time have been shown different policies."""
    with ui.progress(f"asking {box_address}"), reach.box(box_address, remember=False) as box:
        policy = box.policy()
        facts = {"digest": box.policy_digest.hex(), "signed": box.policy_signed}
    print_policy(msgspec.to_builtins(policy) | facts, as_json=as_json)
    if box.policy_signed is False:
        ui.warn("nobody has signed this policy: the relay's tor has the key of the onion address, and cannot")
