"""What must be enforced on this machine before a box serves."""

from __future__ import annotations

from bento_tor.errors import SandboxError
from bento_tor.sandbox import layers
from bento_tor.sandbox.jail import Jail
from bento_tor.server.settings import BoxConfig

# The limits that hold for a session in sum only by cgroups.
NEEDED = frozenset({"memory", "pids"})
_HOW_TO_LIMIT = (
    "start it as a service with a cgroup of its own (systemd: Delegate=yes), or set "
    'limits = "rlimits-only" and accept weaker ones'
)


def require_layers(jail: Jail) -> None:
    """Every layer that no stranger's code may run without, tried in real sandboxes at every start. Raises
    SandboxError."""
    missing = layers.missing(layers.probe(jail))
    if missing:
        raise SandboxError(
            f"this machine does not enforce {', '.join(layer.name for layer in missing)}",
            hint="'bento-tor doctor' says what was seen; docs/threat-model.md what each is for",
        )


def require_limits(jail: Jail, config: BoxConfig) -> None:
    """Without cgroups a function's processes are limited one by one only, and in sum not at all. Raises
    SandboxError."""
    missing = sorted(NEEDED - jail.effective)
    if missing and config.limits == "cgroups":
        raise SandboxError(
            f"this machine lets us set no cgroup limits for {' and '.join(missing)}",
            hint=_HOW_TO_LIMIT,
        )
