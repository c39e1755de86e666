"""The life of a box: who it runs as, how it ends, and what is there after it was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bento_tor.client import parse
from bento_tor.client.source import make_call
from bento_tor.errors import BentoError

pytestmark = pytest.mark.sandbox

ONCE = parse("f", "def f(): return 'still here'")
FOR_EVER = parse("f", "def f():\n    while True: api.recv()")
Eventually = Callable[..., None]


def reader_of(box) -> psutil.Process:
    """The process that reads from clients."""
    return box.reader()


def gone(pids: list[int]) -> bool:
    """Ended, or about to be collected."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def test_the_process_that_reads_from_clients_is_not_root_and_holds_no_other_socket(box) -> None:
    reader = reader_of(box)
    if os.geteuid() == 0:
        assert min(reader.uids()) >= 1_880_000_000 and min(reader.gids()) >= 1_880_000_000
        status = Path(f"/proc/{reader.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status and "Groups:\t \n" in status
    assert psutil.Process(box.process.pid).pid != reader.pid


def test_sigterm_ends_it_with_all_its_sessions(new_box, eventually: Eventually) -> None:
    running = new_box()
    with running.connect() as there:
        session = there.upload(FOR_EVER).start()
        session.wait_attached()
        pids = [child.pid for child in running.children()]
        assert len(pids) >= 3
        assert running.stop() == 0
    eventually(lambda: gone(pids))
    assert not Path(running.address.removeprefix("unix:")).exists()


def test_ctrl_c_ends_it_too(new_box) -> None:
    running = new_box()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=30) == 0


def test_killed_at_once_it_keeps_its_address_and_its_functions_and_says_what_was_lost(
    new_box, eventually: Eventually
) -> None:
    first = new_box()
    with first.connect() as there:
        function = there.upload(ONCE)
        session = there.upload(FOR_EVER).start()
        session.wait_attached()
        pids = [child.pid for child in first.children()]
        first.kill()
    eventually(lambda: gone(pids))
    second = new_box()
    assert second.told["address"] == first.told["address"]
    with second.connect() as there:
        assert list(there.function(function.invocation).start(make_call("f"))) == [b"still here"]
        assert there.attach(session.token).wait().word == "lost"


def test_a_killed_reader_ends_the_keeper_with_a_sentence(new_box) -> None:
    running = new_box()
    reader_of(running).kill()
    assert running.process.wait(timeout=30) == 1
    assert "error: the box's process ended by itself" in running.words()


def test_two_boxes_do_not_share_a_state_folder(new_box, bento) -> None:
    running = new_box()
    done = bento("serve", "--state", str(running.state))
    assert done.returncode == 3 and "another box uses" in done.stderr


@pytest.mark.parametrize(
    ("options", "config", "status", "words"),
    [
        (["--listen", "0.0.0.0:80"], "", 3, "does not listen at 0.0.0.0"),
        (["--listen", "nonsense"], "", 3, "HOST:PORT"),
        (["--images", "/nonexistent"], "", 1, "there is no image"),
        (["--publish", "--control", "127.0.0.1:1"], "", 4, "127.0.0.1:1"),
        ([], "colour = 1", 3, "colour"),
        ([], "[policy]\nsessions = 'many'", 3, "sessions"),
        ([], "[", 3, "cannot be used"),
        (["--config", "/nonexistent"], "", 3, "cannot read"),
    ],
)
def test_a_box_that_cannot_serve_says_why(
    tmp_path: Path, bento, options: list[str], config: str, status: int, words: str
) -> None:
    (tmp_path / "box.toml").write_text(config)
    done = bento("serve", "--state", str(tmp_path / "s"), "--config", str(tmp_path / "box.toml"), *options)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "s" / "box.sock").exists()


def test_no_sandbox_no_service(tmp_path: Path, bento) -> None:
    """Without bubblewrap nothing is served: nothing ever runs unsandboxed."""
    images = tmp_path / "images" / "python"
    subprocess.run(["cp", "-a", "/var/lib/bento-tor/images", str(tmp_path)], check=False)
    if not images.exists():
        done = bento("image", "build", "--dir", str(tmp_path / "images"))
        assert done.returncode == 0
    record = images / "image.json"
    record.write_text(record.read_text().replace('"/usr/bin/python3', '"/usr/bin/no-python3'))
    done = bento("serve", "--state", str(tmp_path / "s"), "--images", str(tmp_path / "images"))
    assert done.returncode != 0 and "error:" in done.stderr
    assert not (tmp_path / "s" / "box.sock").exists()


def test_a_folder_below_a_private_home_works(tmp_path: Path, new_box) -> None:
    """The box's own user could not reach it: it sees it through a private mount namespace."""
    tmp_path.chmod(0o700)
    running = new_box()
    with running.connect() as there:
        assert list(there.run(ONCE)) == [b"still here"]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\5\x91\x91\x91\x91\x91",
        b"\0\0\0\x20" + b"\x81" * 32,
        os.urandom(4096),
    ],
)
def test_garbage_gets_one_refusal_and_a_closed_connection_and_others_notice_nothing(box, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(20)
        raw.connect(box.address.removeprefix("unix:"))
        raw.sendall(data)
        answer = b""
        while part := raw.recv(4096):
            answer += part
    assert answer.count(b"Refused") == 1
    with box.connect() as there:
        assert list(there.run(ONCE)) == [b"still here"]


def test_half_a_frame_and_silence_hold_nothing_up(box) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(box.address.removeprefix("unix:"))
        raw.sendall(b"\0\0")
        with box.connect() as there:
            assert list(there.run(ONCE)) == [b"still here"]


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    box, eventually: Eventually, ready_sandboxes: int
) -> None:
    reader = reader_of(box)

    def descriptors() -> int:
        return reader.num_fds() if os.geteuid() == 0 or reader.uids().real == os.geteuid() else 0

    with box.connect() as there:
        list(there.run(ONCE))
    before = descriptors()
    for _ in range(10):
        try:
            with box.connect() as there:
                there.run(ONCE)
        except BentoError:
            pytest.fail("the box must answer")
    eventually(lambda: descriptors() <= before)
    eventually(lambda: box.sandboxes() == ready_sandboxes)
