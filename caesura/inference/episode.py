"""Answers between which tools speak: tokens → the message that they are, and a tool's words → the tokens that follow.

An episode is one row of tokens. What the model said stays in it as it was drawn; only what comes between two answers
is tokenized here, and it is what the chat template puts there:

    <tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>   drawn
    \\n<|im_start|>tool\\n21 degrees<|im_end|>\\n<|im_start|>assistant\\n  between
    It is warm.<|im_end|>                                             drawn

Where an answer ends in what a template renders is found by having it render other words in the place of the answer's,
and of the tools': so earlier turns, which some templates write anew when more follow, are not looked at.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caesura.data.literal import Spelled, spell, spell_out
from caesura.data.render import num_shared, template_messages
from caesura.errors import InvalidRequest
from caesura.inference.text import Decode, decoder_of
from caesura.inference.tools import MISTRAL, CallArguments, CallBegun, Said, ToolFormat, ToolScanner
from caesura.models.loading import Base

THINK, THINK_END = "<think>", "</think>"
#: Tokens of a prompt's end in which a marker of reasoning, and space after it, have room.
_NUM_LAST = 8
#: Stands for words where only their place is of interest.
_PROBE = "\ue000"

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerRead:
    #: As in Chat Completions, without reasoning.
    message: dict[str, Any]
    #: Those of the tokens that reason, markers included.
    num_reasoning_tokens: int


def read_answer(
    base: Base,
    tool_format: ToolFormat | None,
    functions: Sequence[Message],
    token_ids: Sequence[int],
    seed: int,
    prompt_ids: Sequence[int] = (),
) -> AnswerRead:
    """What the model said by these tokens, the end token among them if it came.

    The functions are those of a request, `{"name", "parameters"}`; the ids of calls are made of `seed`. Reasoning is
    what the answer begins with, from `<think>` to `</think>`; where the prompt ends with `<think>`, from the start on.
    """
    markers = tool_format.special_markers if tool_format is not None and functions else ()
    decode = decoder_of(base.tokenizer, (*markers, THINK, THINK_END))
    has_ended = bool(token_ids) and token_ids[-1] in base.eos_token_ids
    own_ids = list(token_ids[:-1] if has_ended else token_ids)
    text = decode(own_ids)
    num_reasoning_tokens = 0
    if text.lstrip().startswith(THINK) or decode(list(prompt_ids[-_NUM_LAST:])).rstrip().endswith(THINK):
        num_reasoning_tokens = _num_tokens_up_to(THINK_END, own_ids, decode)
        text = text.partition(THINK_END)[2].lstrip("\n")
    if tool_format is None or not functions:
        return AnswerRead({"role": "assistant", "content": text}, num_reasoning_tokens)
    names = [function["name"] for function in functions]
    return AnswerRead(_read_calls(text, tool_format, names, seed), num_reasoning_tokens)


def continuation_ids(
    base: Base,
    messages_before: Sequence[Message],
    assistant_message: Message,
    tool_messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    sampled_ids: Sequence[int],
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens from the end of an answer that calls tools to the beginning of the next answer.

    `sampled_ids` are those that they are to follow. `options` are what else the template was given for the prompt.
    Raises InvalidRequest where the template does not take the messages, or does not show where the answer ends.
    """
    bare = [_bare(message) for message in messages_before]
    num_before = len(bare)
    conversation = [*bare, _bare(assistant_message), *tool_messages]
    spelled = spell(template_messages(conversation), tools, base.tokenizer)
    template = _Template(base, spelled.tools, options or {})
    before, tools_said = spelled.messages[:num_before], spelled.messages[num_before + 1 :]
    (other_answer,) = template_messages([_bare(assistant_message, _PROBE)])
    other_tools = [{**message, "content": _PROBE} for message in tools_said]
    rendered = template.render(spelled.messages)
    # The answer's words begin before `begin`, and those of the tools at `end`.
    begin = num_shared(rendered, template.render([*before, other_answer, *tools_said]))
    end = num_shared(rendered, template.render([*before, spelled.messages[num_before], *other_tools]))
    closing = template.closing(before)
    place = rendered.find(closing, begin, end) if closing.strip() else -1
    if place < 0:
        raise InvalidRequest(
            f"The chat template of '{base.name}' does not show where an answer ends that tools reply to, so none can "
            "be called in the middle of one. Leave 'tools' out, or use another model."
        )
    return _encode(base, spelled, closing, rendered[place + len(closing) :], sampled_ids)


def _num_tokens_up_to(marker: str, token_ids: list[int], decode: Decode) -> int:
    """How many tokens the text takes up to and with the marker; all of them where it has none."""
    return bisect_left(range(len(token_ids)), True, key=lambda num: marker in decode(token_ids[:num]))


def _read_calls(text: str, tool_format: ToolFormat, names: Sequence[str], seed: int) -> dict[str, Any]:
    scanner = ToolScanner(tool_format, names)
    content, calls = "", list[dict[str, Any]]()
    for event in [*scanner.add(text), *scanner.finish()]:
        if isinstance(event, Said):
            content += event.text
        elif isinstance(event, CallBegun):
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": _call_id(tool_format, seed, event.call), "type": "function", "function": function})
        elif isinstance(event, CallArguments):
            calls[event.call]["function"]["arguments"] += event.text
    if not calls:
        return {"role": "assistant", "content": content}
    return {"role": "assistant", "content": content or None, "tool_calls": calls}


def _call_id(tool_format: ToolFormat, seed: int, number: int) -> str:
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=12).hexdigest()
    # Mistral's templates take ids of nine letters and digits and no others.
    return digest[:9] if tool_format is MISTRAL else f"call_{digest}"


def _bare(message: Message, words: str = "") -> Message:
    """The message with these words in the place of its own, if it calls tools.

    Only its first call is left (Llama's templates take no more than one), without the arguments, which may be broken.
    """
    if not message.get("tool_calls"):
        return message
    call = message["tool_calls"][0]
    function = {"name": words or call["function"]["name"], "arguments": "{}"}
    return {"role": message["role"], "content": words, "tool_calls": [{**call, "function": function}]}


@dataclass(frozen=True, slots=True)
class _Template:
    base: Base
    tools: list[dict[str, Any]] | None
    options: Mapping[str, Any]

    def render(self, messages: Sequence[Message], *, up_to_answer: bool = True) -> str:
        """The conversation, and what an answer to it begins after."""
        try:
            return self.base.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=self.tools,
                add_generation_prompt=up_to_answer,
                tokenize=False,
                **self.options,
            )
        except Exception as error:  # A template is foreign code: whatever it raises, it refuses the messages.
            raise InvalidRequest(
                f"The chat template of '{self.base.name}' does not take what tools said: {error}"
            ) from error

    def closing(self, messages: Sequence[Message]) -> str:
        """What is put behind an answer's words."""
        answer = {"role": "assistant", "content": _PROBE}
        return self.render([*messages, answer], up_to_answer=False).rpartition(_PROBE)[2]


def _encode(base: Base, spelled: Spelled, closing: str, rest: str, sampled_ids: Sequence[int]) -> list[int]:
    """`closing` and `rest` as they follow what was sampled: what has ended by itself is not closed again."""
    tokenizer: Any = base.tokenizer
    ends = {end_id: tokenizer.decode([end_id], skip_special_tokens=False) for end_id in base.eos_token_ids}
    end_id = sampled_ids[-1] if sampled_ids and sampled_ids[-1] in ends else None
    if end_id is None:
        return _tokenize(tokenizer, spelled, closing + rest)
    # The template may close with another of the end tokens than the one that was drawn.
    closed_by = max((end for end in ends.values() if closing.lstrip().startswith(end)), key=len, default=None)
    behind = closing if closed_by is None else closing.lstrip().removeprefix(closed_by)
    # With the end token before it: some tokenizers take the beginning of a text for the beginning of a word.
    token_ids = _tokenize(tokenizer, spelled, ends[end_id] + behind + rest)
    assert token_ids[0] == end_id
    return token_ids[1:]


def _tokenize(tokenizer: Any, spelled: Spelled, text: str) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=bool(spelled.stands_for))
    return spell_out(spelled, text, encoding, tokenizer)["input_ids"]
