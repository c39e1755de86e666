"""How far a tor is, in its own words: percentage, TAG, SUMMARY and WARNING, asked from it and never read from
a log."""

from __future__ import annotations

from dataclasses import dataclass

from bento_tor.controller.events import split_words
from bento_tor.controller.tor import Tor

# What a stuck tor most often means; the key is tor's TAG, or its beginning.
_HINTS = {
    "starting": "its log says why it does not begin",
    "conn": "a firewall, a missing network or a wrong clock keeps it from its first relay",
    "handshake": "a firewall or a wrong clock breaks the first connection",
    "onehop": "its first relay does not answer: a wrong clock is the usual cause",
    "requesting_status": "no directory gives it a consensus yet: the authorities' logs say more",
    "loading": "directories answer slowly, or the consensus names too few relays",
    "enough_dirinfo": "it knows the network but cannot reach a relay",
    "ap_": "its first circuit does not come up: relays may be down",
    "circuit_create": "its first circuit does not come up: relays may be down",
}


@dataclass(frozen=True)
class Bootstrap:
    """One tor's progress in percent, its tag and summary, and the last warning (empty: none)."""

    progress: int
    tag: str
    summary: str
    warning: str = ""
    reason: str = ""

    @property
    def done(self) -> bool:
        """Whether this tor has built a circuit and can be used."""
        return self.progress >= 100

    @property
    def words(self) -> str:
        """`50 % (loading_descriptors): Loading relay descriptors`, and the warning."""
        text = f"{self.progress} % ({self.tag}): {self.summary}"
        return f"{text}; {self.warning}" if self.warning else text

    @property
    def hint(self) -> str:
        """What usually keeps a tor at this point."""
        return next((hint for tag, hint in _HINTS.items() if self.tag.startswith(tag)), "look at its log")


def parse_bootstrap(text: str) -> Bootstrap:
    """The progress that a BOOTSTRAP line of tor's tells (STATUS_CLIENT, GETINFO status/bootstrap-phase)."""
    values = dict(split_words(text)[1])
    progress = values.get("PROGRESS", "0")
    return Bootstrap(
        progress=int(progress) if progress.isdigit() else 0,
        tag=values.get("TAG", "unknown"),
        summary=values.get("SUMMARY", ""),
        warning=values.get("WARNING", ""),
        reason=values.get("REASON", ""),
    )


def read_bootstrap(tor: Tor) -> Bootstrap:
    """Ask a running tor how far it is. Raises TorError."""
    return parse_bootstrap(tor.get_info("status/bootstrap-phase"))
