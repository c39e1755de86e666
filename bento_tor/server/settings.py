"""What `bento-tor serve` needs to know, as frozen values."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from bento_tor.policy.document import Policy

# systemd's UIDS-GIDS.md lists 1879048192..2147483647 as unused by any convention.
DEFAULT_FIRST_UID = 1_880_000_000


class BoxConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `bento-tor serve` needs to know.

    state      folder of the box: keys, functions, its socket; made where it is missing
    listen     unix:PATH or HOST:PORT on loopback; empty: the socket in the state folder
    images     folder of images; empty: the default one
    control    control port of the tor that publishes the onion service; empty: look for one
    publish    put the box up as an onion service (not where setup-relay did)
    port       the onion service's port
    first_uid  root only: the box runs as this user id, its functions as the ones after it
    policy     what the box offers
    """

    state: str = ""
    listen: str = ""
    images: str = ""
    control: str = ""
    publish: bool = False
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 80
    first_uid: Annotated[int, msgspec.Meta(ge=1000, le=2**31 - 2)] = DEFAULT_FIRST_UID
    limits: Literal["cgroups", "rlimits-only"] = "cgroups"
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        """A ValueError that names the key, where a limit is none at all."""
        limits = {f"limits.{name}": value for name, value in msgspec.structs.asdict(self.policy.limits).items()}
        for name, value in (limits | {"sessions": self.policy.sessions}).items():
            if value < 1:
                raise ValueError(f"policy.{name} must be at least 1, not {value}")
