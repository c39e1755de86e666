"""What Chromium makes of pages, in the real jail: the scripts run, and the picture is the page."""

from __future__ import annotations

import base64
import email
import hashlib
import re
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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


def test_letters_of_most_scripts_are_in_the_picture(render, picture, load):
    """What there is no letter for is one and the same empty square."""
    letters = load(Path(__file__).parent / "site.py").LETTERS
    _, document = render(f"{WEB}/letters")
    width, _, rows = picture.decode(document)
    places = [divmod(number, width // 40) for number in range(len(letters) + 2)]
    *drawn, nothing, last = [
        b"".join(row[120 * column : 120 * column + 120] for row in rows[40 * line : 40 * line + 40])
        for line, column in places
    ]
    assert not [letter for letter, each in zip(letters, drawn, strict=True) if each == nothing or drawn.count(each) > 1]
    assert last == bytes(GREEN) * 1600


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


# What is asked for; the end of its address, its status, and what is left out.
GREEN_PAGES = [
    ("/redirect", "/green", 200, 0),
    ("/nowhere", "/nowhere", 404, 0),
    ("/pushes", "/pushes", 200, 0),
    ("/slow-image", "/slow-image", 200, 1),
    ("/endless", "/endless", 200, 1),
    ("/spins", "/spins", 200, 0),
]


@pytest.mark.parametrize(("path", "end", "status", "left_out"), GREEN_PAGES, ids=[row[0] for row in GREEN_PAGES])
def test_there_is_a_picture_in_time_whatever_the_page_does(render, picture, path, end, status, left_out):
    began = time.monotonic()
    facts, document = render(WEB + path, timeout=12)
    assert time.monotonic() - began < 24
    assert (facts["url"], facts["status"], facts["error"], facts["left_out"]) == (WEB + end, status, None, left_out)
    _, _, rows = picture.decode(document)
    assert GREEN in {picture.point(rows, 50, y) for y in (50, 130)}


NO_PAGES = [
    ("http://web.example.com/slow", None, "it does not answer"),
    ("http://web.example.com/circle", None, "it cannot be had: ERR_TOO_MANY_REDIRECTS"),
    ("http://web.example.com/file", None, "it is no page, but a download"),
    ("https://web.example.com/green", None, "its certificate is not good: ERR_CERT_AUTHORITY_INVALID"),
    ("http://web.example.com:81/", None, "it cannot be had: ERR_SOCKS_CONNECTION_FAILED"),
    ("http://nowhere.example.com/", None, "it cannot be had: ERR_SOCKS_CONNECTION_FAILED"),
    ("file:///driver.py", None, "only pages of http and https are rendered"),
]


@pytest.mark.parametrize(("url", "status", "error"), NO_PAGES, ids=[row[0] for row in NO_PAGES])
def test_where_there_is_no_page_there_is_a_sentence(render, url, status, error):
    facts, document = render(url, timeout=12)
    assert (facts["status"], facts["error"], facts["parts"], document) == (status, error, [], b"")


def test_a_long_page_is_cut(render, picture):
    facts, document = render(f"{WEB}/long")
    assert facts["error"] is None and picture.size(document) == (1280, 10_000)
    _, printed = render(f"{WEB}/long", "pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 50


def test_what_is_larger_than_may_be_is_a_sentence(render):
    facts, document = render(f"{WEB}/whole", limit=1000)
    assert facts["error"] == "it is larger than 1000 bytes" and document == b""


def test_frames_of_other_sites_are_in_the_picture(render, picture):
    facts, document = render(f"{WEB}/frames")
    assert facts["error"] is None and facts["left_out"] == 0
    _, _, rows = picture.decode(document)
    for x, y in ((x, y) for x in range(0, 1216, 304) for y in range(0, 474, 158)):
        assert (picture.point(rows, x + 50, y + 50), picture.point(rows, x + 50, y + 130)) == (BLUE, RED)


def test_hosts_of_the_manifest_decide_what_is_loaded(render, picture):
    facts, document = render(f"{WEB}/frames", hosts=("web.example.com", "3.frames.example.com"))
    assert facts["error"] is None and facts["left_out"] == 11
    assert picture.size(document) == (1280, 800)
    facts, _ = render(f"{WEB}/green", hosts=("other.example.com",))
    assert facts["error"] == "it cannot be had: ERR_SOCKS_CONNECTION_FAILED"


def test_a_certificate_is_told(render, web):
    """Nobody of Chromium's vouches for ours, so this one is excused, by its key."""
    key = x509.load_pem_x509_certificate((web.directory / "web.pem").read_bytes()).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    flag = f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}"
    facts, document = render("https://web.example.com/green", flag=flag)
    assert facts["certificate"] == {"valid": True, "subject": "web.example.com", "issuer": "web.example.com"}
    assert document.startswith(b"\x89PNG")


def test_nothing_leaves_by_another_way(render, web):
    """Not to the sandbox, nor the machine, nor by UDP; and Chromium calls nobody of its own accord."""
    facts, document = render(f"{WEB}/other-ways", "mhtml")
    assert facts["error"] is None
    assert re.search(rb"<title>t</title>", document.replace(b"=\r\n", b"")), document
    assert {name.split()[0].partition(".")[2] for name in web.asked()} <= {"example.com", "frames.example.com"}
