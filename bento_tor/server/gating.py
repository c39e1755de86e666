"""One session's questions to the gate, and the answers, as frames. What is judged and done is bento_tor/gate's part."""

from __future__ import annotations

from bento_tor.gate.link import GateLine
from bento_tor.gate.words import Told
from bento_tor.sandbox import frames


class Gating:
    """Answers session `number`, which asked for some routine at least."""

    def __init__(self, line: GateLine, number: int) -> None:
        self._line = line
        self._number = number

    async def answer(self, request: frames.TorRequest) -> bytes:
        """The frame that answers."""
        answer = await self._line.ask(self._number, request)
        if isinstance(answer, Told):
            return frames.encode_tor_reply(answer.facts)
        return frames.encode_tor_refusal(answer.word, answer.sentence)
