"""The operator's commands on a box that does not run: with the rights of the box's own user, and no more.

What they do to a real stopped box is in tests/box/test_operator.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bento_tor.errors import ConfigError
from bento_tor.server.state import open_state
from bento_tor.server.stopped import open_store

BOX_UID = 54_321

Bento = Callable[..., CompletedProcess[str]]


def test_a_link_that_the_boxs_user_left_leads_root_nowhere(short_path: Path, bento: Bento) -> None:
    assert os.geteuid() == 0, "only root has rights that a box's user has not"
    state = short_path / "s"
    open_state(state, box_uid=BOX_UID).close()
    private = short_path / "private"
    private.mkdir(mode=0o700)
    database = private / "precious.db"
    with sqlite3.connect(database) as precious:
        precious.execute("CREATE TABLE functions (x)")
    (state / "box" / "box.db").symlink_to(database)
    content = database.read_bytes()
    done = bento("panic", "--yes", "--state", str(state))
    assert database.read_bytes() == content and os.listdir(private) == ["precious.db"], done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "keys").mkdir()
    (tmp_path / "s" / "box").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="it is a link"), open_store(tmp_path / "s"):
        pass
