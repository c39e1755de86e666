"""What `bento-tor serve` needs to know, as frozen values; reading them, and the policy, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from bento_tor.config import parse_toml, read_toml
from bento_tor.controller.onion import Defences
from bento_tor.errors import ConfigError
from bento_tor.policy.document import FOUND, Policy

# systemd's UIDS-GIDS.md lists 1879048192..2147483647 as unused by any convention.
DEFAULT_FIRST_UID = 1_880_000_000


class BoxConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `bento-tor serve` needs to know.

    state        folder of the box: keys, functions, its socket; made where it is missing
    listen       unix:PATH or HOST:PORT on loopback; empty: the socket in the state folder
    images       folder of images; empty: the default one
    relay        control port of the relay whose exit policy `exit` egress obeys; empty: look for one
    socks        tor's SOCKS port that `tor` egress goes through, and functions' way to other boxes
    control      control port of the tor that publishes the onion service; empty: look for one
    gate_control control port of the box's own tor, where the policy offers Tor routines (never the relay's)
    publish      put the box up as an onion service (not where setup-relay did)
    port         the onion service's port
    pow          that service asks for proof of work when more clients come than `pow_rate` a second
    pow_rate     see there
    max_streams  most connections by one circuit to that service; 0: no limit
    single_hop   that service does not hide where the box is, and is quicker; on a tor of its own, which `serve` starts
                 where `control` names none
    single_hop_torrc  a file with further lines for the torrc of that tor
    clients      most connections at once
    circuit_ids  tor says before each connection which circuit it came by (HiddenServiceExportCircuitID haproxy):
                 connections of one circuit then share one quota
    clients_per_circuit  most connections of one circuit, with circuit_ids
    spool_bytes  most disk for output that waits for its readers
    first_uid    root only: the box runs as this user id, its functions as the ones after it
    audit        keep single events, with their times, in memory for `bento-tor audit`; else rounded counts only
    metrics      where Prometheus reads: HOST:PORT on loopback or unix:PATH; empty: nowhere
    ready        how many sandboxes wait ready for code (each takes some 10 MB); 0: every start is a cold one
    policy       what the box offers
    policy_file  a file with the policy, instead of the table [policy]
    """

    state: str = ""
    listen: str = ""
    images: str = ""
    relay: str = ""
    socks: str = ""
    control: str = ""
    gate_control: str = ""
    publish: bool = False
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 80
    pow: bool = False
    pow_rate: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 20
    max_streams: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    single_hop: bool = False
    single_hop_torrc: str = ""
    clients: Annotated[int, msgspec.Meta(ge=1, le=60000)] = 2000
    circuit_ids: bool = False
    clients_per_circuit: Annotated[int, msgspec.Meta(ge=1, le=60000)] = 16
    spool_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 50)] = 1 << 30
    first_uid: Annotated[int, msgspec.Meta(ge=1003, le=2**31 - 2)] = DEFAULT_FIRST_UID
    limits: Literal["cgroups", "rlimits-only"] = "cgroups"
    ready: Annotated[int, msgspec.Meta(ge=0, le=256)] = 4
    audit: bool = False
    metrics: str = ""
    policy: Policy = Policy()
    policy_file: str = ""

    @property
    def defences(self) -> Defences:
        """What the onion service does against floods."""
        return Defences(pow_rate=self.pow_rate if self.pow else 0, max_streams=self.max_streams)


def read_config(path: Path) -> BoxConfig:
    """The settings of a box, its policy among them. Raises ConfigError, naming file, line and key."""
    config = read_toml(path, BoxConfig)
    if not config.policy_file:
        _refuse_found(config.policy, str(path))
        return config
    if config.policy != Policy():
        raise ConfigError(f"{path} has both a policy_file and a table [policy]", hint="leave one of them out")
    # Beside the file that names it, as a reader of that file would take it.
    return with_policy_file(config, path.parent / config.policy_file)


def check_onion(config: BoxConfig) -> None:
    """Raises ConfigError for settings of an onion service that this box's own cannot have."""
    if config.circuit_ids and config.publish:
        raise ConfigError(
            "circuit_ids and publish do not go together: tor names circuits only for services that its torrc names",
            hint="leave publish out, and and name the service in the torrc, with HiddenServiceExportCircuitID haproxy",
        )
    if (config.pow or config.max_streams) and not config.publish:
        raise ConfigError(
            "pow and max_streams are for the onion service that publish puts up",
            hint="where tor's torrc names it: HiddenServicePoWDefensesEnabled 1, HiddenServiceMaxStreams N",
        )
    if config.single_hop and not config.publish:
        raise ConfigError("single_hop is for the onion service that publish puts up", hint="add --publish")


def with_policy_file(config: BoxConfig, path: Path) -> BoxConfig:
    """The same settings with the policy of that file."""
    return msgspec.structs.replace(config, policy=read_policy(path), policy_file=str(path))


def read_policy(path: Path) -> Policy:
    """The policy in a file of its own, or in the table [policy] of a box's settings. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as why:
        raise ConfigError(f"cannot read {path}: {why.strerror}") from why
    if "policy" in _tables(data):
        return read_config(path).policy
    policy = parse_toml(data, Policy, str(path))
    _refuse_found(policy, str(path))
    return policy


def _tables(data: bytes) -> dict[str, Any]:
    """The file's topmost keys; none where it is no TOML: the one who reads it for good says why."""
    try:
        found: dict[str, Any] = msgspec.toml.decode(data)
    except (ValueError, RecursionError):
        return {}
    return found


def _refuse_found(policy: Policy, source: str) -> None:
    default = Policy()
    for name in FOUND:
        if getattr(policy, name) != getattr(default, name):
            raise ConfigError(
                f"{source} cannot be used: {name!r} is not for the operator to say",
                hint='the box finds it out when it starts; limits = "rlimits-only" serves without cgroups',
            )
