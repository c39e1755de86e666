"""What `doctor` tells: every layer, found by trying. On this machine as root all of them must hold."""

from __future__ import annotations

import os

import pytest

from bento_tor.sandbox import layers
from bento_tor.sandbox.jail import Jail
from bento_tor.sandbox.layers import ESSENTIAL, Layer

pytestmark = pytest.mark.sandbox


def test_every_layer_holds_where_we_are_root(jail, nothing_left):
    found = layers.probe(jail)
    names = [layer.name for layer in found]
    assert len(names) == len(set(names)) >= 18
    assert set(names) >= ESSENTIAL
    assert layers.missing(found) == []
    weak = [layer for layer in found if not layer.effective]
    assert not weak or os.geteuid() != 0 or jail.effective != {"memory", "pids", "cpu"}, weak


def test_every_layer_holds_in_the_image_browser_too(image, browser_image, nothing_left):
    with Jail(image, browser_image) as both, Jail(browser_image) as alone:
        assert layers.missing(layers.probe(both)) == []
        found = {layer.name: layer for layer in layers.probe(alone)}
    assert layers.missing(tuple(found.values())) == []
    assert found["no-proc"].how == "its own processes only"


def test_what_is_missing_is_named():
    weak = Layer("seccomp", effective=False, how="execve: worked, unshare: EPERM")
    assert layers.missing((weak, Layer("cpu", effective=False, how="93% of a core at 50%"))) == [weak]
