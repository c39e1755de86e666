"""Where cgroup controllers can be used from here. Reads two texts of /proc; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The last only counts, and only in v1; in v2 `cpu` does that too.
CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
# In v2, where our own processes are below the group that was given to us. (systemd 254: `DelegateSubgroup=` that.)
LEAF = "bento-keeper"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a controller can be used: the directory of our own group in its hierarchy; in v2 not the leaf in it."""

    controller: str
    version: int
    path: Path


def find_places(own_groups: str, mounts: str) -> list[Place]:
    """Where each controller is; `own_groups` and `mounts` are the texts of /proc/self/cgroup and
    mountinfo."""
    own = dict(_read_own_groups(own_groups))
    places: dict[str, Place] = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup"):
            continue
        root, mount_point = (part.encode().decode("unicode_escape") for part in left.split()[3:5])
        kind, _, options = right.split(" ", 2)
        version = 2 if kind == "cgroup2" else 1
        offered = ["" if version == 2 else option for option in options.split(",")]
        for name in offered:
            if name not in own or (version == 1 and name not in CONTROLLERS):
                continue
            path = _maybe_below(Path(mount_point), root, own[name])
            if path is None:
                continue
            if version == 2 and path.name == LEAF:
                path = path.parent
            for controller in _listed(path) if version == 2 else [name]:
                # v2 first: where a controller is bound to it, no v1 mount can have it.
                if controller in CONTROLLERS and (version == 2 or controller not in places):
                    places[controller] = Place(controller, version, path)
    return [places[name] for name in CONTROLLERS if name in places]


def _read_own_groups(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path


def _maybe_below(mount_point: Path, root: str, group: str) -> Path | None:
    """A container may have mounted only a part of the tree, from `root` on. None: our group is not in that part."""
    # From a cgroup namespace, what is outside of it is seen through `..`: there is nothing of ours there.
    if ".." in group.split("/"):
        return None
    inside = group[len(root) :] if root != "/" and f"{group}/".startswith(f"{root}/") else group
    return mount_point / inside.lstrip("/")


def _listed(path: Path) -> list[str]:
    try:
        return (path / "cgroup.controllers").read_text().split()
    except OSError:
        return []
