"""A row → token ids and which of them are learned, through the model's own chat template. No I/O.

A template with `{% generation %}` markers says itself which tokens are the assistant's. For one without, an
assistant message is what the template adds to the rendered conversation beyond the prompt for that message:

    messages[:i], add_generation_prompt=True   <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    messages[:i + 1]                           (the same, and)                          Hello<|im_end|>\\n

Some templates drop the reasoning of earlier turns, so what is left of a message in the whole conversation is
the end of what it added. Others change what stands before a message, or how it is closed, when more follows it: then
the message is what changes in the whole conversation when other words are put in its place, and its end token. A row
in which that does not show a message's place either is refused. Special tokens that are spelled out in a message stay
text (literal.py).
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from caesura.data.literal import SpecialTokens, Spelled, from_last_special, num_special_at, spell, spell_out
from caesura.data.rows import Row
from caesura.errors import InvalidData

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
#: Stands for an answer where only its place is of interest.
_PROBE = "\ue000"
#: Characters that a template may put between a prompt and an answer's words.
_MOST_HEADER = 64


class Tokenizer(SpecialTokens, Protocol):
    """What is used of a fast tokenizer of transformers."""

    def get_chat_template(self, *, tools: list[dict[str, Any]] | None = None) -> str:
        """The template that `apply_chat_template` takes for these tools."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """The rendered text with `tokenize=False`, else a mapping of equally long lists."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model sees it. `line` is the 1-based line of the file.

    `loss_mask` is 1 at the tokens that are learned, and as long as `token_ids`. `num_truncated` tokens were cut
    from the end.
    """

    line: int
    token_ids: list[int]
    loss_mask: list[int]
    num_truncated: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_loss_tokens(self) -> int:
        """How many tokens are predicted and learned; nothing predicts the first one."""
        return sum(self.loss_mask[1:])

    @property
    def teaches(self) -> bool:
        return self.num_loss_tokens > 0


def render_row(row: Row, tokenizer: Tokenizer, max_tokens: int) -> Example:
    """The row as at most `max_tokens` tokens.

    Raises `InvalidData`, naming the line: the template refuses the row, or the place of an assistant message
    in what it renders cannot be told.
    """
    spelled = spell(template_messages(row.messages), row.tools, tokenizer)
    conversation = _Conversation(row.line, spelled, tokenizer)
    weights = [int(message.get("weight", 1)) for message in row.messages if message["role"] == "assistant"]
    is_marked = _MARKER.search(tokenizer.get_chat_template(tools=row.tools)) is not None
    encoding = conversation.encode(is_marked)
    offsets = encoding["offset_mapping"]
    if not is_marked:
        loss_mask = _learned(offsets, conversation.spans(), weights)
    elif 0 in weights:
        loss_mask = _weighted(encoding["assistant_masks"], offsets, conversation.spans(), weights)
    else:
        loss_mask = encoding["assistant_masks"]
    if spelled.stands_for:
        encoding = conversation.spell_out({**encoding, "loss_mask": loss_mask})
        loss_mask = encoding["loss_mask"]
    token_ids = encoding["input_ids"]
    num_truncated = max(0, len(token_ids) - max_tokens)
    return Example(row.line, token_ids[:max_tokens], loss_mask[:max_tokens], num_truncated)


def encode_conversation(
    messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None, tokenizer: Tokenizer, **options: Any
) -> list[int]:
    """The conversation up to where an answer begins. Raises whatever the template does; InvalidData as `spell_out`."""
    spelled = spell(template_messages(messages), tools, tokenizer)
    options = {"tools": spelled.tools, "add_generation_prompt": True, **options}
    kwargs = {"verbose": False, "return_offsets_mapping": bool(spelled.stands_for)}
    encoding: Any = tokenizer.apply_chat_template(
        spelled.messages, tokenize=True, return_dict=True, tokenizer_kwargs=kwargs, **options
    )
    if spelled.stands_for:
        text: str = tokenizer.apply_chat_template(spelled.messages, tokenize=False, **options)
        encoding = spell_out(spelled, text, encoding, tokenizer)
    return encoding["input_ids"]


def pin_date(template: str, now: datetime) -> str:
    """The template with the date of `now` where it prints the clock's: a row must render to the same tokens always."""
    return _CLOCK.sub(lambda call: json.dumps(now.strftime(call["format"])), template)


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as chat templates expect them; the same for training and for inference.

    Text parts are joined; keys without a value, and `weight`, are dropped; the arguments of a tool call become
    the object that they spell, where they do; `developer` becomes `system`, which every template knows.
    """
    return [_template_message(message) for message in messages]


def _template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if kept["role"] == "developer":
        kept["role"] = "system"
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"])
    if "tool_calls" in kept:
        kept["tool_calls"] = [_template_tool_call(call) for call in kept["tool_calls"]]
    return kept


def _template_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class _Span:
    """Where an assistant message stands in the rendered text, in characters: from `start` to before `end`."""

    start: int
    end: int


def _learned(offsets: list[tuple[int, int]], spans: list[_Span], weights: list[int]) -> list[int]:
    """The mask out of the spans of the assistant messages.

    A token that begins before a span and ends in it is learned, as it is where a template has markers: else the
    first word would be lost wherever its token begins with a space of the prompt.
    """
    ends = [span.end for span in spans]
    mask = [0] * len(offsets)
    for token, (_, end) in enumerate(offsets):
        owner = bisect_left(ends, end)
        if owner < len(spans) and spans[owner].start < end:
            mask[token] = weights[owner]
    return mask


def _weighted(mask: list[int], offsets: list[tuple[int, int]], spans: list[_Span], weights: list[int]) -> list[int]:
    """The template's own mask without the messages of weight 0: each token belongs to the span that ends next."""
    ends = [span.end for span in spans]
    weights_and_rest = [*weights, 1]
    return [learned * weights_and_rest[bisect_left(ends, end)] for learned, (_, end) in zip(mask, offsets, strict=True)]


@dataclass(frozen=True, slots=True)
class _Conversation:
    line: int
    spelled: Spelled
    tokenizer: Tokenizer

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.spelled.messages

    def encode(self, is_marked: bool) -> dict[str, Any]:
        """`input_ids`, `offset_mapping` and, where the template has markers, `assistant_masks`."""
        return self._apply(
            self.messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=is_marked,
            # Quiet: a row longer than the model's context is cut later.
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        )

    def spell_out(self, encoding: dict[str, Any]) -> dict[str, Any]:
        try:
            return spell_out(self.spelled, self._text(self.messages), encoding, self.tokenizer)
        except InvalidData as error:
            raise InvalidData(f"Example {self.line}: {error.message}") from error

    def spans(self) -> list[_Span]:
        """The assistant messages' spans, in order, none of them overlapping or empty."""
        full = self._text(self.messages)
        spans: list[_Span] = []
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant":
                spans.append(self._span(index, full, spans[-1].end if spans else 0))
        return spans

    def _span(self, index: int, full: str, earliest: int) -> _Span:
        prompt, up_to_answer = self._prompt(index), self._text(self.messages[: index + 1])
        shared, start = num_shared(up_to_answer, prompt), num_shared(full, prompt)
        kept = ""
        if min(shared, start) >= len(prompt) or min(shared, start) >= self._num_settled(index, prompt):
            kept = _longest_ending(up_to_answer[shared:], full, start, _last_word(self.messages[index]))
        span = _Span(start, start + len(kept)) if kept else self._exchanged(index, full, prompt)
        if span is None or span.start < earliest:
            raise InvalidData(
                f"Example {self.line}, message {index + 1} cannot be found again in what the model's chat template"
                " makes of the whole conversation. Make it the last message of a row of its own, or use a model whose"
                " chat template has {% generation %} markers."
            )
        return span

    def _num_settled(self, index: int, prompt: str) -> int:
        """Characters of the prompt that the answer does not change; it may change how it itself is begun."""
        return num_shared(prompt, self._text(self.messages[:index])) if index else 0

    def _exchanged(self, index: int, full: str, prompt: str) -> _Span | None:
        """The message's place in `full`, as what other words take the place of. `prompt`: what it is the answer to."""
        others = [*self.messages[:index], {"role": "assistant", "content": _PROBE}, *self.messages[index + 1 :]]
        try:
            before, _, behind = self._text(others).partition(_PROBE)
        except InvalidData:  # a tool's words without a call before them
            return None
        if _PROBE in behind or not full.endswith(behind):
            return None
        start, end = num_shared(full, before), len(full) - len(behind)
        # The model also writes what stands between the prompt and its words: a space, or the name of a channel.
        opening = from_last_special(prompt, self.tokenizer)
        begun = full.rfind(opening, max(0, start - _MOST_HEADER - len(opening)), start) if opening else -1
        if begun >= 0:
            start = begun + len(opening)
        if end <= start or _own_words(self.messages[index]) not in full[start:end]:
            return None
        return _Span(start, end + num_special_at(full, end, self.tokenizer))

    def _prompt(self, index: int) -> str:
        """What the model is given to write message `index`."""
        if index:
            return self._text(self.messages[:index], add_generation_prompt=True)
        # Templates take no empty conversation, so the place of the answer is looked up in a conversation of one.
        return self._text([{"role": "assistant", "content": _PROBE}]).partition(_PROBE)[0]

    def _text(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _apply(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, tools=self.spelled.tools, **options)
        except Exception as error:  # A template is foreign code: whatever it raises, it refuses the row.
            message = f"Example {self.line} cannot be rendered by the model's chat template: {error}"
            raise InvalidData(message) from error


def _longest_ending(answer: str, full: str, start: int, last_word: str) -> str:
    """The longest ending of `answer` that holds `last_word` and stands at `start` in `full`; empty if none does."""
    num_droppable = max(0, answer.rfind(last_word)) if last_word else 0
    for dropped in range(num_droppable + 1):
        # The first comparison is for speed: it copies little.
        if full.startswith(answer[dropped : dropped + 64], start) and full.startswith(answer[dropped:], start):
            return answer[dropped:]
    return ""


def _last_word(message: dict[str, Any]) -> str:
    """What no rendering of the message is without: the name of its last tool call, or its text's last word."""
    if "tool_calls" in message:
        return message["tool_calls"][-1]["function"]["name"]
    return (re.findall(r"\w+", message["content"]) or [""])[-1]


def _own_words(message: dict[str, Any]) -> str:
    """What the message says, without its reasoning; the name of its last tool call where it makes one."""
    if "tool_calls" in message:
        return message["tool_calls"][-1]["function"]["name"]
    return message["content"].rpartition("</think>")[2].strip()


def num_shared(left: str, right: str) -> int:
    """How many characters the two texts begin with alike."""
    if left.startswith(right):
        return len(right)
    return next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
