"""The store of a box that does not run, for the operator's commands: for a process that ends with the command, because
as root it gets mounts of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bento_tor.errors import ConfigError
from bento_tor.sandbox.mounts import private_view
from bento_tor.server.state import open_state
from bento_tor.server.store import Store


@contextmanager
def open_store(state: Path) -> Iterator[Store | None]:
    """The store in the state folder `state`, while no box may start there; None where there is none.

    Raises ConfigError where a box runs, or it cannot be used."""
    opened = open_state(state, box_uid=None)
    try:
        with _as_owner(opened.database_dir) as folder:
            # Erasing needs no box address: no token is looked up.
            database = folder / "box.db"
            maybe_store = Store(database, "", max_functions=0) if os.path.lexists(database) else None
            try:
                yield maybe_store
            finally:
                if maybe_store is not None:
                    maybe_store.close()
    finally:
        opened.close()


@contextmanager
def _as_owner(folder: Path) -> Iterator[Path]:
    """`folder` as the user it belongs to can reach it, with his rights. He parses strangers' bytes: what he may have
    made of the files, links to others' for instance, must not be followed with root's."""
    owner = folder.lstat().st_uid
    if folder.is_symlink():
        raise ConfigError(f"{folder} cannot be used: it is a link", hint="name the box's state folder with --state")
    if os.geteuid() != 0 or owner == 0:
        yield folder
        return
    view = private_view({"box": folder})["box"]  # the folders above may be within root's reach only
    os.setegid(owner)
    os.seteuid(owner)
    try:
        yield view
    finally:
        os.seteuid(0)
        os.setegid(0)
