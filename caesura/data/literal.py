"""Special tokens spelled out in what somebody wrote are text, never tokens.

A chat template marks turns with special tokens (`<|im_end|>`). Somebody who writes one into a message, or into what
a tool answers, could otherwise end a turn and begin another in a role that is not theirs. So each is rendered as one
character of the private use area, which no template and no tokenizer knows; in the tokens its place is then taken by
those that the same text has where no special token is recognized. No I/O.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from caesura.data.lines import is_dict, is_list
from caesura.errors import InvalidData

Message = dict[str, Any]
#: Of Unicode's private use area; its first characters are probes elsewhere.
_FIRST, _LAST = 0xE100, 0xF8FF
#: Put before a text that is encoded by itself, so that it is not taken for the beginning of a word.
_ANCHORS = ("\n", ".", "x", " ")


class SpecialTokens(Protocol):
    """What is used of a fast tokenizer of transformers."""

    added_tokens_decoder: Mapping[int, Any]
    eos_token_id: int | None
    backend_tokenizer: Any


@dataclass(frozen=True, slots=True)
class Spelled:
    """A conversation as the template gets it, and which character stands for which special token in it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    stands_for: dict[str, str]

    def restore(self, text: str) -> str:
        """The rendered text as it was meant."""
        return text.translate({ord(character): special for character, special in self.stands_for.items()})


def spell(messages: Sequence[Message], tools: list[dict[str, Any]] | None, tokenizer: SpecialTokens) -> Spelled:
    """The conversation with one character for each special token that is spelled out in it."""
    pattern = _pattern(tokenizer)
    texts = [*_strings(list(messages)), *_strings(tools)]
    found = sorted({special for text in texts for special in pattern.findall(text)}) if pattern is not None else []
    if pattern is None or not found:  # nearly always
        return Spelled(list(messages), tools, {})
    taken = {character for text in texts for character in text}
    free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in taken)
    characters = {special: next(free) for special in found}

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: characters[match[0]], value)
        if is_dict(value):
            return {put_in(key): put_in(one) for key, one in value.items()}
        return [put_in(one) for one in value] if is_list(value) else value

    stands_for = {character: special for special, character in characters.items()}
    return Spelled(put_in(list(messages)), put_in(tools), stands_for)


def spell_out(spelled: Spelled, text: str, encoding: dict[str, Any], tokenizer: SpecialTokens) -> dict[str, Any]:
    """The encoding of the rendered `text` with the tokens of each special token's spelling in the place of its
    character's. `encoding`: equally long lists, `offset_mapping` among them.

    Raises InvalidData where a character's tokens cannot be told from those beside it.
    """
    if not spelled.stands_for:
        return encoding
    spellings = _spellings(tokenizer)
    lists: dict[str, list[Any]] = {name: [] for name in encoding}
    place = 0
    while place < len(encoding["input_ids"]):
        start, end = encoding["offset_mapping"][place]
        special = next((spelled.stands_for[one] for one in text[start:end] if one in spelled.stands_for), None)
        taken, token_ids = 1, [encoding["input_ids"][place]]
        if special is not None:
            if end - start != 1 or special not in spellings:
                raise InvalidData(f"The text contains an invalid token: {special}. Leave it out.")
            token_ids = spellings[special]
            # A character may be several tokens, one for each of its bytes.
            while place + taken < len(encoding["input_ids"]) and (
                encoding["offset_mapping"][place + taken][0] == start
            ):
                taken += 1
        for name, values in encoding.items():
            lists[name] += token_ids if name == "input_ids" else [values[place]] * len(token_ids)
        place += taken
    return lists


def num_special_at(text: str, place: int, tokenizer: SpecialTokens) -> int:
    """How many characters the special token has that stands there; 0 where none does."""
    pattern = _pattern(tokenizer)
    match = None if pattern is None else pattern.match(text, place)
    return 0 if match is None else len(match[0])


def from_last_special(text: str, tokenizer: SpecialTokens) -> str:
    """The end of the text that its last special token begins; empty where it has none."""
    pattern = _pattern(tokenizer)
    last = None if pattern is None else next(reversed(list(pattern.finditer(text))), None)
    return "" if last is None else text[last.start() :]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_dict(value):
        for key, one in value.items():
            yield from _strings(key)
            yield from _strings(one)
    elif is_list(value):
        for one in value:
            yield from _strings(one)


_patterns: WeakKeyDictionary[SpecialTokens, re.Pattern[str] | None] = WeakKeyDictionary()
_known_spellings: WeakKeyDictionary[SpecialTokens, dict[str, list[int]]] = WeakKeyDictionary()


def _specials(tokenizer: SpecialTokens) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]


def _pattern(tokenizer: SpecialTokens) -> re.Pattern[str] | None:
    """Any of the special tokens, the longest that fits."""
    if tokenizer not in _patterns:
        specials = sorted(_specials(tokenizer), key=len, reverse=True)
        _patterns[tokenizer] = re.compile("|".join(map(re.escape, specials))) if specials else None
    return _patterns[tokenizer]


def _spellings(tokenizer: SpecialTokens) -> dict[str, list[int]]:
    """From each special token to the tokens of its spelling; without those that cannot be encoded by themselves."""
    if tokenizer not in _known_spellings:
        plain = copy.deepcopy(tokenizer.backend_tokenizer)  # others use that one meanwhile
        plain.encode_special_tokens = True
        spellings: dict[str, list[int]] = {}
        for special in _specials(tokenizer):
            token_ids = next(filter(None, (_encode(plain, anchor, special) for anchor in _ANCHORS)), None)
            if token_ids is not None:
                spellings[special] = token_ids
        _known_spellings[tokenizer] = spellings
    return _known_spellings[tokenizer]


def _encode(plain: Any, anchor: str, text: str) -> list[int] | None:
    """None where no token begins with the text."""
    encoding = plain.encode(anchor + text, add_special_tokens=False)
    begin = next((place for place, (start, _) in enumerate(encoding.offsets) if start == len(anchor)), None)
    return None if begin is None else encoding.ids[begin:]
