"""`browser` at a real box with a way out, over real circuits; the bytes counted at the client's SOCKS socket."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from bento_tor.client import connect, load
from bento_tor.client.source import make_call

pytestmark = [pytest.mark.sandbox, pytest.mark.tor]


def browse(address: str, socks: str, url: str, image: str = "python", **options: Any) -> tuple[dict[str, Any], bytes]:
    with connect(address, socks=socks, timeout_s=60) as there:
        session = there.run(load("browser").in_image(image), make_call("browser", url, **options))
        (message,) = session
        assert session.wait().word == "returned", session.wait()
        there.shutdown(session.maybe_shutdown, last=True)
    line, _, rest = zlib.decompress(message).partition(b"\n")
    return json.loads(line), rest


def test_pages_through_a_box(web_box, tor_network) -> None:
    for path, status in (("/", 200), ("/cookie", 200), ("/nowhere", 404)):
        head, data = browse(web_box.address, str(tor_network.client.socks), f"http://web.example.com{path}")
        assert (head["status"], head["error"]) == (status, None) and data


def test_a_page_is_rendered_by_a_box(web_box, tor_network) -> None:
    head, data = browse(
        web_box.address, str(tor_network.client.socks), "http://web.example.com/", image="browser", render="png"
    )
    assert (head["status"], head["error"]) == (200, None)
    assert head["parts"][0]["type"] == "image/png" and data.startswith(b"\x89PNG\r\n")


def test_an_image_without_an_engine_says_so(web_box, tor_network) -> None:
    head, data = browse(web_box.address, str(tor_network.client.socks), "http://web.example.com/", render="png")
    assert head["error"] == "there is no Chromium here: it needs a box with the image 'browser'" and data == b""
