"""What Chromium makes of pages, in the real jail: the scripts run, and the picture is the page."""

from __future__ import annotations

import email
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandbox

RED, BLUE, GREEN, WHITE = (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)
WEB = "http://web.example.com"


@pytest.fixture(scope="session")
def picture(load):
    return load(Path(__file__).parent / "picture.py")


def test_a_picture_shows_what_the_script_made_and_the_image(render, picture):
    facts, document = render(f"{WEB}/whole")
    assert facts == {
        "url": f"{WEB}/whole", "status": 200, "certificate": None, "error": None, "left_out": 0,
        "parts": [{"url": f"{WEB}/whole", "type": "image/png", "length": len(document)}],
    }  # fmt: skip
    width, height, rows = picture.decode(document)
    assert (width, height) == (1280, 800)
    assert [picture.point(rows, x, y) for x, y in ((50, 50), (50, 150), (600, 50))] == [BLUE, RED, WHITE]
    text = {picture.point(rows, x, y) for y in range(210, 260) for x in range(200)}
    assert min(map(sum, text)) < 200, "there are letters, so there is a font"


def test_a_saved_page_holds_its_image_and_what_the_script_made(render):
    facts, document = render(f"{WEB}/whole", "mhtml")
    parts = {
        part.get_content_type(): part.get_payload(decode=True) for part in email.message_from_bytes(document).walk()
    }
    assert facts["left_out"] == 0 and parts["image/png"].startswith(b"\x89PNG")
    told = " ".join(re.search(r"the script ran([^<]*)", parts["text/html"].decode())[1].split())
    assert re.fullmatch(
        r"Mozilla/5\.0 \(X11; Linux x86_64\) .* Chrome/\d+\.0\.0\.0 Safari/537\.36 en-US,en UTC 1280x800 true", told
    ), told


def test_a_printed_page_is_one(render):
    _, document = render(f"{WEB}/whole", "pdf")
    assert document.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", document)) == 1
    assert b"/Subtype /Image" in document
