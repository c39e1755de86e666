"""What is ours in an instance's files: read it, see what a change of it would mean, make the change file by file.

The order keeps tor able to start between any two steps: the drop-in is there before a line includes it, and the line is
gone before the drop-in is. Reloading, and the way back, are in `changeover`.
"""

from __future__ import annotations

import difflib
import tempfile
from contextlib import suppress
from pathlib import Path

from bento_tor.controller import rewrite, settings
from bento_tor.controller.debian import Instance
from bento_tor.controller.dropin import Ours, is_included, maybe_owner, with_include, without_include
from bento_tor.controller.settings import Settings
from bento_tor.errors import ConfigError


def read_ours(instance: Instance) -> Ours:
    """What is there now. Raises ConfigError."""
    try:
        dropin = instance.dropin.read_bytes()
    except FileNotFoundError:
        return Ours(None, included=is_included(read_torrc(instance), instance.dropin))
    except OSError as why:
        raise ConfigError(f"cannot read {instance.dropin}: {why.strerror}", hint="run setup-relay as root") from why
    return Ours(dropin, included=is_included(read_torrc(instance), instance.dropin))


def read_torrc(instance: Instance) -> bytes:
    """The torrc. Raises ConfigError."""
    try:
        return instance.torrc.read_bytes()
    except OSError as why:
        raise ConfigError(f"cannot read {instance.torrc}: {why.strerror}", hint="run setup-relay as root") from why


def mean(instance: Instance, ours: Ours) -> Settings:
    """What tor would make of the files with that part in the place of ours. Nothing of the instance is changed: tor
    verifies a copy. Raises ConfigError with tor's complaints."""
    with tempfile.TemporaryDirectory(prefix="bento-verify-") as place:
        folder = Path(place) / instance.folder.name
        folder.mkdir()
        for path in instance.folder.glob("*"):
            if path != instance.dropin and path.is_file() and not path.name.startswith("."):
                (folder / path.name).write_bytes(path.read_bytes())
        if ours.dropin is not None:
            (folder / instance.dropin.name).write_bytes(ours.dropin)
        text = _torrc_with(instance, ours).replace(bytes(instance.folder), bytes(folder))
        torrc = Path(place) / "torrc"
        torrc.write_bytes(text)
        try:
            return settings.read(instance, torrc)
        except ConfigError as why:
            message = why.message.replace(str(torrc), str(instance.torrc)).replace(str(folder), str(instance.folder))
            raise ConfigError(message, hint=why.hint) from why


def strangers(instance: Instance) -> tuple[Path, ...]:
    """Files beside our drop-in that an %include of the folder takes in too."""
    found = (path for path in instance.folder.glob("*.conf") if not path.name.startswith("."))
    return tuple(sorted(path for path in found if path != instance.dropin))


def diff(instance: Instance, before: Ours, after: Ours) -> str:
    """The change, as `diff -u` shows it."""
    torrcs = (_torrc_with(instance, before), _torrc_with(instance, after))
    dropins = (before.dropin or b"", after.dropin or b"")
    pairs = [(instance.torrc, torrcs), (instance.dropin, dropins)]
    return "".join(_diff(path, old, new) for path, (old, new) in pairs)


def stage(instance: Instance, ours: Ours) -> None:
    """Have the new files beside the old ones, on disk: what can fail for want of room or rights fails here. Raises
    ConfigError."""
    if ours.dropin is not None:
        rewrite.make_folder(instance.folder)
        rewrite.stage(instance.dropin, ours.dropin, instance.torrc)
    text = _torrc_with(instance, ours)
    if text != read_torrc(instance):
        rewrite.stage(instance.torrc, text, instance.torrc)


def put_in_place(instance: Instance, ours: Ours, *, remove_folder: bool) -> None:
    """Make it so: what is staged takes its place, what goes goes. Raises ConfigError."""
    if ours.dropin is not None and rewrite.staged(instance.dropin).exists():
        rewrite.put_in_place(instance.dropin)
    if rewrite.staged(instance.torrc).exists():
        rewrite.put_in_place(instance.torrc)
    if ours.dropin is None:
        _remove_dropin(instance, remove_folder=remove_folder)


def discard(instance: Instance) -> None:
    """Remove what is staged and was not put in place. Raises ConfigError."""
    for path in (instance.dropin, instance.torrc):
        if rewrite.staged(path).exists():
            rewrite.remove(rewrite.staged(path))


def restore(instance: Instance, ours: Ours, *, remove_folder: bool) -> None:
    """Back to that, from wherever a change was left. What somebody else has written into the torrc meanwhile stays.
    Raises ConfigError."""
    discard(instance)
    if read_ours(instance) != ours:
        stage(instance, ours)
    put_in_place(instance, ours, remove_folder=remove_folder)


def _remove_dropin(instance: Instance, *, remove_folder: bool) -> None:
    with suppress(FileNotFoundError):
        # Whatever happened meanwhile: a file that is not ours is not ours to remove.
        if maybe_owner(instance.dropin.read_bytes()) is not None:
            rewrite.remove(instance.dropin)
    if remove_folder:
        with suppress(OSError):  # somebody has put a file there: it is his folder now
            instance.folder.rmdir()
            rewrite.sync_folder(instance.folder.parent)


def _torrc_with(instance: Instance, ours: Ours) -> bytes:
    change = with_include if ours.included else without_include
    return change(read_torrc(instance), instance.dropin)


def _diff(path: Path, old: bytes, new: bytes) -> str:
    before, after = (text.decode("utf-8", "replace").splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, str(path), str(path)))
