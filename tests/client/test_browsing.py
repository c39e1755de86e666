"""What is asked of a box for a page: one size, whatever the page."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_tor.client import browsing, parse
from bento_tor.client.browsing import Wish
from bento_tor.client.memory import MemoryBox
from bento_tor.errors import ConfigError, FunctionFailed
from bento_tor.protocol import messages as m
from bento_tor.protocol.connection import Role
from bento_tor.protocol.frames import encode

WISHES = st.builds(
    Wish,
    url=st.text(max_size=300).map(lambda text: f"http://x/{text}"),
    padding_bytes=st.integers(0, 1 << 32),
    release_s=st.floats(0, 600),
    render=st.sampled_from(["", *browsing.KINDS]),
    assets=st.booleans(),
    timeout_s=st.floats(0.1, 3600),
    limit_bytes=st.integers(1, 64 << 20),
)


@given(WISHES)
def test_every_call_is_as_long_and_says_what_is_wished(wish: Wish) -> None:
    call = browsing.call(wish)
    frame = encode(m.Execute(1, bytes(32), bytes(32), call.name, call.arguments), Role.CLIENT)
    assert len(frame) == len(encode(m.Execute(1, bytes(32), bytes(32), "browser", "x" * 4096), Role.CLIENT))
    (url,), more = ast.literal_eval(call.arguments)
    assert (url, more["padding"], more["render"], more["assets"]) == (
        wish.url,
        wish.padding_bytes,
        wish.render,
        wish.assets,
    )


def test_an_address_that_does_not_fit_is_too_long() -> None:
    browsing.call(Wish("http://x/" + "y" * 3000))
    with pytest.raises(ConfigError, match="too long"):
        browsing.call(Wish("http://x/" + "y" * 5000))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("example.org", "https://example.org"),
        ("example.org/a?b#c", "https://example.org/a?b#c"),
        ("http://example.org:8080/", "http://example.org:8080/"),
        ("HTTPS://B\u00fccher.example/", "HTTPS://B\u00fccher.example/"),
    ],
)
def test_an_address_is_what_people_type(text: str, url: str) -> None:
    assert browsing.address(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "file:///etc/passwd", "ftp://x/", "javascript:alert(1)", "http://", "http://[x/", "http://x:99999/", "a b"]
    + ["http://x/\n", "http://x/\x1b[2J"],
)
def test_what_is_no_address_of_the_web_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no address of a page"):
        browsing.address(text)


def test_another_image_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "browser").write_text("what is in the user's folder is none of it")
    monkeypatch.chdir(tmp_path)
    plain, rendered = browsing.function(Wish("http://x")), browsing.function(Wish("http://x", render="png"))
    assert (plain.manifest.image, plain.manifest.egress) == ("python", "exit")
    assert (rendered.manifest.image, rendered.manifest.egress) == ("browser", "exit")
    assert plain.text == rendered.text


@pytest.mark.parametrize("sent", [[], [b"a", b"b"]])
def test_a_function_that_sends_another_number_of_messages_is_no_browser(sent: list[bytes]) -> None:
    def function(api: Any, *args: object, **more: object) -> None:
        for each in sent:
            api.send(each)

    with MemoryBox({"browser": function}) as there, there.connect() as box:
        session = box.run(parse("browser", "def browser(): pass"), browsing.call(Wish("http://x")))
        with pytest.raises(FunctionFailed, match="without a page"):
            browsing.collect(session)


Bento = Callable[..., subprocess.CompletedProcess[str]]


def test_usage(bento: Bento, tmp_path: Path) -> None:
    box = ["--box", f"unix:{tmp_path}/none"]
    done = bento("client", "browse", "x.example", "-o", "file", "--open", *box)
    assert done.returncode == 2 and "one of the two" in done.stderr
    done = bento("client", "browse", "file:///etc/passwd", *box)
    assert done.returncode == 3 and "no address of a page" in done.stderr
    done = bento("client", "browse", "x.example", "--render", "gif", *box)
    assert done.returncode == 2
    done = bento("client", "browse", "x.example", *box)
    assert done.returncode == 6 and "no box listens" in done.stderr
