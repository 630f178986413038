"""From tokens to text while an answer is being made: what can be told now, and what must be held back."""

from __future__ import annotations

from collections.abc import Callable

#: What a decoder puts in place of bytes that are no character, or are not one yet.
REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of tokens that come one by one. The pieces together are the decode of all tokens.

    Not covered: a decoder that changes its mind about text of many tokens ago (Llama 2's, on bytes that are no UTF-8).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        # Tokens up to `_told` are told. The piece before is decoded again with each new one: decoders treat
        # the first token of a text apart (they drop its space).
        self._context = 0
        self._told = 0

    def add(self, token_id: int) -> str:
        """The text that `token_id` completes; empty in the middle of a character."""
        self._token_ids.append(token_id)
        text = self.rest()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._context, self._told = self._told, len(self._token_ids)
        return text

    def rest(self) -> str:
        """The text that is still held back: at the end, what never became a character."""
        known = self._decode(self._token_ids[self._context : self._told])
        return self._decode(self._token_ids[self._context :])[len(known) :]


class StopStrings:
    """Passes text on up to the first stop string, however the string is cut into pieces."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        assert all(stops)
        self._stops = stops
        #: The end of the text: a stop string may have begun in it.
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that can be told now."""
        self._held += text
        found_at = [index for stop in self._stops if (index := self._held.find(stop)) >= 0]
        self.found = bool(found_at)
        end = min(found_at) if found_at else len(self._held) - self._num_held()
        text, self._held = self._held[:end], self._held[end:]
        return text

    def rest(self) -> str:
        """What was held back and turned out to be no stop string."""
        return "" if self.found else self._held

    def _num_held(self) -> int:
        lengths = (
            length for stop in self._stops for length in range(1, len(stop)) if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)
