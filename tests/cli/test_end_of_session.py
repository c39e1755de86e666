"""What the end of a session may erase."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_tor.cli.client.attach import end_of
from bento_tor.client import keyring
from bento_tor.client.keyring import Kept, KeptSession
from bento_tor.policy.outcome import Outcome


class Told:
    """A box and a session, as far as the end of one needs them; notes what it is told."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        self.log, self.offset = b"", 5

    def shutdown(self, token: bytes) -> None:
        self.tokens.append(token)


@pytest.mark.parametrize(("box", "erased"), [("here", True), ("evil", False)])
def test_a_shutdown_token_goes_to_the_box_of_its_function_only(
    box: str, erased: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_TOR_KEYRING", str(tmp_path / "keyring.json"))
    kept, told = KeptSession(box, "mine", b"t" * 32, once=True), Told()
    with keyring.changing() as ring:
        ring.functions["mine"] = Kept("here", b"i" * 32, b"s" * 32)
        ring.sessions["gift"] = kept
    end_of("gift", kept, Outcome.returned(), told, told)  # type: ignore[arg-type]
    assert told.tokens == ([b"s" * 32] if erased else [])
    assert ("mine" in keyring.read().functions) is not erased
