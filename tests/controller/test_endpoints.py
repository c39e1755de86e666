"""HOST:PORT and unix:PATH."""

from pathlib import Path

import pytest

from bento_tor.controller.endpoints import MAX_SOCKET_PATH_BYTES, Endpoint
from bento_tor.errors import ConfigError


@pytest.mark.parametrize(
    "text", ["127.0.0.1:9050", "localhost:1", "[::1]:65535", "unix:/run/tor/control", "a-b.example:80"]
)
def test_an_endpoint_survives_parsing_and_printing(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "9050",
        "localhost",
        "localhost:",
        ":9050",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:９",
        "::1:9050",
        "[::1:9050",
        "[x]:9050",
        "unix:",
        "unix:run/tor",
        "a b:80",
        "a\n:80",
        "unix:/a\0b",
        "http://x:80",
    ],
)
def test_nonsense_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Endpoint.parse(text)
    assert error.value.hint


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    longest = "/" + "x" * (MAX_SOCKET_PATH_BYTES - 1)
    assert Endpoint.unix(Path(longest)).is_unix
    with pytest.raises(ConfigError, match="108 bytes"):
        Endpoint.unix(Path(longest + "x"))
