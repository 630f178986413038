"""From tokens to text while an answer is being made: what can be told now, and what must be held back."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from caesura.models.loading import ChatTokenizer

#: What a decoder puts in place of bytes that are no character, or are not one yet.
REPLACEMENT = "\ufffd"

Decode = Callable[[list[int]], str]


def decoder_of(tokenizer: ChatTokenizer, markers: Collection[str] = ()) -> Decode:
    """Tokens → text, without special tokens other than `markers`."""
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)  # slow tokenizers have none
    if fast is None:
        return lambda token_ids: tokenizer.decode(token_ids, skip_special_tokens=True)
    kept = {token_id: marker for marker in markers if (token_id := fast.token_to_id(marker)) is not None}
    if not kept:
        return lambda token_ids: fast.decode(token_ids)  # the wrapper round it takes ten times as long

    def decode(token_ids: list[int]) -> str:
        text, begin = "", 0
        for place, token_id in enumerate(token_ids):
            if token_id in kept:
                text += fast.decode(token_ids[begin:place]) + kept[token_id]
                begin = place + 1
        return text + fast.decode(token_ids[begin:])

    return decode


class Detokenizer:
    """The text of tokens that come one by one. The pieces together are the decode of all tokens.

    Not covered: a decoder that changes its mind about text of many tokens ago (Llama 2's, on bytes that are no UTF-8).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        # The tokens of the last piece told, and those after it. The piece before is decoded again with each new token:
        # decoders treat the first token of a text apart (they drop its space).
        self._known: list[int] = []
        self._num_known_chars = 0
        self._new: list[int] = []

    def add(self, token_id: int) -> str:
        """The text that `token_id` completes; empty in the middle of a character."""
        self._new.append(token_id)
        text = self.rest()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._known, self._new = self._new, []
        self._num_known_chars = len(self._decode(self._known))
        return text

    def rest(self) -> str:
        """The text that is still held back: at the end, what never became a character."""
        return self._decode(self._known + self._new)[self._num_known_chars :]


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
        if not self._stops:
            return text
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
