"""A node -> the text of its torrc; the fingerprints -> the authorities' bandwidth file. The lines and their
reasons are in torrc_templates/; a missing value is an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from bento_tor.network.plan import Node, Schedule
from bento_tor.resources import read_text

_WEIGHT_KB = 1000
_LIFETIME_S = 365 * 24 * 3600

_ENVIRONMENT = jinja2.Environment(  # noqa: S701 - a torrc is no HTML: nothing to escape
    loader=jinja2.FunctionLoader(lambda name: read_text("torrc_templates", name)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Shared:
    """What the torrcs of a network have in common. `owner_pid`: the process that the tors end with; 0:
    none."""

    dir_authorities: tuple[str, ...]
    schedule: Schedule
    bandwidths: Path
    owner_pid: int = 0


def render_torrc(node: Node, shared: Shared) -> str:
    """The torrc of that node. Raises ConfigError where the template is missing."""
    return _ENVIRONMENT.get_template(f"{node.role}.torrc").render(node=node, shared=shared)


def render_bandwidths(fingerprints: Sequence[str], now_s: float) -> str:
    """A V3BandwidthsFile in which every relay weighs the same (tor gives authorities next to no weight,
    whatever it says).

    Without one, the first consensus weighs by what the relays have carried so far: whoever updated its
    descriptor first gets all the weight. Clients then take that one as guard and as rendezvous point at once,
    which no relay extends back to, and onion services hang for one voting interval or more. `now_s`: in
    seconds since the epoch."""
    # Authorities ignore a file older than three days; this one holds for as long as the keys do.
    lines = [str(int(now_s) + _LIFETIME_S)]
    lines += [f"node_id=${fingerprint} bw={_WEIGHT_KB}" for fingerprint in fingerprints]
    return "\n".join(lines) + "\n"
