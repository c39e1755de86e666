"""A file in two boxes' drop boxes, over real circuits, by the commands: one box is gone when it is wanted back."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bento_tor.controller.streams import check_reachable
from bento_tor.network import Network

pytestmark = [pytest.mark.tor, pytest.mark.sandbox]

CONFIG = """
first_uid = FIRST
ready = 1
[policy]
store_bytes = 8000000
[policy.limits]
memory_bytes = 67108864
"""


def test_shards_at_two_onions_and_one_of_them_gone(
    tor_network: Network, running_box, bento: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(400_000))

    def start(name: str, first_uid: int):
        (tmp_path / name).mkdir()
        options = ["--publish", "--control", str(tor_network.client.control)]
        box = running_box(tmp_path / name / "s", *options, config=CONFIG.replace("FIRST", str(first_uid)))
        check_reachable(tor_network.client.socks, box.told["address"], 80, timeout_s=120)
        return box

    with ThreadPoolExecutor() as pool:
        one, other = pool.map(start, ("one", "other"), (1_880_100_000, 1_880_101_000))
    try:
        network = ["--network", str(tor_network.directory), "--timeout", "120"]
        addresses = f"{one.told['address']},{other.told['address']}"
        put = ["client", "shard", "put", "file", "--boxes", addresses, "--need", "1", "-o", "ticket"]
        done = bento(*put, *network, timeout_s=300)
        assert done.returncode == 0, done.stderr
        done = bento("client", "dropbox", "put", "file", "--box", other.told["address"], *network, timeout_s=300)
        assert done.returncode == 0, done.stderr
        one.kill()
        got = bento("client", "shard", "get", "@ticket", "-o", "got", *network, timeout_s=300)
        assert got.returncode == 0 and f"warning: {one.told['address']}: " in got.stderr, got.stderr
        got = bento("client", "dropbox", "get", "-", "-o", "left", *network, stdin=done.stdout, timeout_s=300)
        assert got.returncode == 0, got.stderr
        for name in ("got", "left"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "file").read_bytes()
    finally:
        for box in (one, other):
            box.stop()
