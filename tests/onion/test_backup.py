"""The operator's keys in one sealed file: taken, wiped, put back elsewhere; the same relay and addresses as before."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest

from bento_tor.controller import backup, client_auth, onion, restoring
from bento_tor.controller.backup import Backup, Kept
from bento_tor.controller.launch import LaunchedTor
from bento_tor.errors import ConfigError, TorError

Bento = Callable[..., CompletedProcess[str]]
SEED = b"\7" * 32
ONE = Backup((Kept("state", "keys/onion.seed", 0o600, SEED),), "", {"state/keys/onion.seed": onion.onion_address(SEED)})
OWNER = "debian-tor" if os.geteuid() == 0 else ""


def told(done: CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def relay(start_lone_tor: Callable[..., LaunchedTor], short_path: Path) -> Path:
    """The DataDirectory of a relay with an onion service, which has run."""
    data, service = short_path / "data", short_path / "data" / "bento-box"
    data.mkdir(mode=0o700)
    assert onion.maybe_place_key(service, SEED)
    client_auth.write_authorized(service, {"alice": client_auth.base32(client_auth.mint_pair().public)})
    lines = ["ORPort 9", "ExitRelay 0", f"HiddenServiceDir {service}", "HiddenServicePort 80 127.0.0.1:1"]
    launched = start_lone_tor(*lines, "__ReloadTorrcOnSIGHUP 0")
    while not ((data / "fingerprint").is_file() and (service / "hostname").is_file()):
        launched.check()
    return data


def test_the_same_relay_and_the_same_addresses_on_another_machine(
    bento: Bento, relay: Path, short_path: Path, tmp_path: Path
) -> None:
    fingerprint = (relay / "fingerprint").read_text().split()[1]
    made = told(
        bento("onion", "create", "web", "--target", "127.0.0.1:1", "--offline", "--json", "--state", f"{tmp_path}/s")
    )
    (tmp_path / "box.toml").write_text("[policy]\nsessions = 3\n")
    onion.store_seed(tmp_path / "s" / "keys" / "onion.seed", b"\5" * 32)
    (tmp_path / "passphrase").write_text("a long one\n")
    secret = ["--passphrase-file", str(tmp_path / "passphrase")]
    places = ["--state", f"{tmp_path}/s", "--tor-data", str(relay)]
    file = tmp_path / "sealed"
    kept = told(bento("keys", "backup", str(file), *places, "--config", f"{tmp_path}/box.toml", *secret, "--json"))
    addresses = {made["address"], onion.onion_address(SEED), onion.onion_address(b"\5" * 32)}
    assert kept["fingerprint"] == fingerprint and set(kept["onions"]) == addresses
    assert file.stat().st_mode & 0o777 == 0o600
    data = file.read_bytes()
    assert SEED not in data and onion.expanded_key(SEED) not in data and b"alice" not in data
    running = bento("keys", "restore", str(file), "--tor-data", str(relay), *secret)
    assert running.returncode == 3 and "a tor runs on" in running.stderr
    shutil.rmtree(tmp_path / "s")
    # To be reached by tor's own user, as /var/lib is.
    short_path.chmod(0o711)
    new = short_path / "new"
    back = ["--state", str(new / "box"), "--tor-data", str(new / "tor"), "--config-to", str(new / "etc")]
    done = told(bento("keys", "restore", str(file), *back, *secret, "--json"))
    assert done["fingerprint"] == fingerprint and set(done["onions"]) == addresses
    assert onion.onion_address(onion.load_seed(new / "box" / "keys" / "onion.seed")) in addresses
    assert (new / "etc" / "box.toml").read_text() == "[policy]\nsessions = 3\n"
    assert len(list((new / "tor" / "bento-box" / "authorized_clients").iterdir())) == 1
    for path in (new / "tor").rglob("*"):
        seen = path.stat()
        assert seen.st_mode & 0o077 == 0, path
        assert not OWNER or seen.st_uid == pwd.getpwnam(OWNER).pw_uid, path
    assert not list(new.glob(".bento-proof*")), "no copy of the keys is left"
    # Again: nothing is overwritten, and it is proved again.
    assert told(bento("keys", "restore", str(file), *back, *secret, "--json")) == done
    (new / "box" / "keys" / "onion.seed").write_bytes(os.urandom(32))
    other = bento("keys", "restore", str(file), *back, *secret)
    assert other.returncode == 3 and "is there already" in other.stderr


def test_a_wrong_passphrase_a_damaged_file_and_no_file(bento: Bento, tmp_path: Path) -> None:
    sealed = backup.seal(ONE, "right")
    assert backup.unseal(sealed, "right") == ONE
    for data in (sealed, sealed[:-1], sealed[:60], sealed[:30] + b"x" + sealed[31:]):
        with pytest.raises(ConfigError, match="wrong, or the file is damaged"):
            backup.unseal(data, "wrong" if data is sealed else "right")
    for data in (b"", b"bento", os.urandom(200)):
        with pytest.raises(ConfigError, match="no backup"):
            backup.unseal(data, "right")
    assert bento("keys", "restore", str(tmp_path / "none")).returncode == 3
    (tmp_path / "file").write_bytes(sealed)
    assert bento("keys", "restore", str(tmp_path / "file")).returncode == 3, "no passphrase"
    assert bento("keys", "backup", str(tmp_path / "file")).returncode == 3, "never over a file"
    nothing = bento("keys", "restore", str(tmp_path / "file"), "--passphrase-file", "-", stdin="right\n")
    assert nothing.returncode == 3 and "nothing of this backup is wanted" in nothing.stderr


@pytest.mark.parametrize("path", ["../out", "/etc/x", "keys/../../out", ""])
def test_a_backup_writes_nowhere_else(tmp_path: Path, path: str) -> None:
    hostile = msgspec.structs.replace(ONE, files=(Kept("state", path, 0o600, b"x"),))
    with pytest.raises(ConfigError):
        restoring.restore(hostile, state=tmp_path / "s", tor_data=None, policy=None, owner="")
    assert not list(tmp_path.iterdir())


def test_a_link_leads_a_restore_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s" / "keys").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="link"):
        restoring.restore(ONE, state=tmp_path / "s", tor_data=None, policy=None, owner="")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_keys_that_are_not_the_stated_ones_are_found_out(tmp_path: Path) -> None:
    lying = msgspec.structs.replace(ONE, onions={"state/keys/onion.seed": onion.onion_address(b"\1" * 32)})
    with pytest.raises(TorError, match="not what was backed up"):
        restoring.restore(lying, state=tmp_path / "s", tor_data=None, policy=None, owner="")


def test_a_backup_follows_no_link_of_tors_user(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "secret_id_key").symlink_to("/etc/shadow")
    with pytest.raises(ConfigError):
        backup.collect(state=None, tor_data=tmp_path)


@pytest.mark.parametrize("path", ["keys/secret_id_key", "bento-box/hs_ed25519_secret_key"])
def test_a_link_of_tors_user_is_not_read_for_him(tmp_path: Path, path: str) -> None:
    """What was restored is read again as root, and copied to where tor's user reads it."""
    kept, target = Kept("tor", path, 0o600, b"k" * 64), tmp_path / "data" / path
    target.parent.mkdir(parents=True)
    target.write_bytes(kept.content)
    assert restoring._read_back(tmp_path / "data", kept) == kept.content
    (tmp_path / "shadow").write_bytes(b"root's")
    target.unlink()
    target.symlink_to(tmp_path / "shadow")
    with pytest.raises(ConfigError, match="was changed"):
        restoring._read_back(tmp_path / "data", kept)
    target.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / target.name).write_bytes(b"root's")
    target.parent.rmdir()
    target.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="was changed"):
        restoring._read_back(tmp_path / "data", kept)


@pytest.mark.parametrize("name", ['x"\nUser root\n#', "x\ny", "x\0y", 'x"', "x\\y"])
def test_a_name_in_a_backup_writes_no_torrc(tmp_path: Path, name: str) -> None:
    crafted = Backup((Kept("tor", f"{name}/hostname", 0o600, b"h"),), "", {})
    with pytest.raises(ConfigError, match="no place for a file"):
        restoring.restore(crafted, state=None, tor_data=tmp_path / "tor", policy=None, owner="")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "keys" / "onion.seed").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is there already"):
        restoring.restore(ONE, state=tmp_path, tor_data=None, policy=None, owner="")


def test_keys_that_a_killed_run_left_go_with_the_next_one(tmp_path: Path) -> None:
    left, busy = tmp_path / ".bento-proof-dead", tmp_path / ".bento-proof-busy"
    for folder in (left, busy):
        (folder / "data" / "keys").mkdir(parents=True)
        (folder / "data" / "keys" / "secret_id_key").write_bytes(b"k")
    (tmp_path / ".bento-proof-link").symlink_to(tmp_path)
    with restoring._held(busy):
        restoring._sweep(tmp_path)
    assert not left.exists() and (busy / "data" / "keys" / "secret_id_key").exists() and tmp_path.exists()
