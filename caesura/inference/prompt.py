"""Requests → the tokens that answers continue."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caesura.data.render import encode_conversation
from caesura.errors import InvalidRequest
from caesura.inference.engine import ChatRequest, CompletionRequest
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.loading import Base


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What one answer continues, or several: it is itself only, so that those with the same one are known."""

    #: At least one.
    token_ids: list[int]
    adapter: LoadedAdapter | None


def encode_prompt(base: Base, request: ChatRequest | CompletionRequest, vocab_size: int) -> list[int]:
    """The tokens, at least one, with room for an answer after them.

    Raises InvalidRequest when there is no room, the chat template does not take the messages, or a token is none.
    """
    is_chat = isinstance(request, ChatRequest)
    prompt_ids = _encode_chat(base, request) if is_chat else _encode_text(base, request.prompt, vocab_size)
    param, name = ("messages", "messages") if is_chat else ("prompt", "prompt")
    wanted = 0 if request.max_tokens == 0 else 1
    if base.context_window - len(prompt_ids) < wanted:
        raise InvalidRequest(
            f"This model's maximum context length is {base.context_window} tokens. However, your {name} resulted "
            f"in {len(prompt_ids)} tokens. Please reduce the length of the {name}.",
            param=param,
            code="context_length_exceeded",
        )
    return prompt_ids


def _encode_chat(base: Base, request: ChatRequest) -> list[int]:
    """The conversation up to where the answer begins."""
    try:
        return encode_conversation(request.messages, request.tools, base.tokenizer)
    except Exception as error:  # A template is foreign code: whatever it raises, it refuses the messages.
        raise InvalidRequest(
            f"The chat template of '{base.name}' does not take these messages: {error}", param="messages"
        ) from error


def _encode_text(base: Base, prompt: str | list[int], vocab_size: int) -> list[int]:
    tokenizer: Any = base.tokenizer
    if isinstance(prompt, str):
        prompt_ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    else:
        check_token_ids(prompt, vocab_size, "prompt")
        prompt_ids = prompt
    if prompt_ids:
        return prompt_ids
    beginning = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if beginning is None:
        raise InvalidRequest(
            f"The prompt is empty, and '{base.name}' has no token to begin a text with. Send a prompt.", param="prompt"
        )
    return [beginning]


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequest, naming `param`, when one of them is none of the model's."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"Invalid token id in '{param}': {token_id}. The model's tokens are numbered 0 to {vocab_size - 1}.",
                param=param,
            )
