"""One conversation → one answer: prompt, tokens, text."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers leave the types of what they return open)
from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from caesura.data.render import template_messages
from caesura.errors import InvalidRequest
from caesura.inference.engine import ChatRequest, Finished, Piece, Text
from caesura.inference.grammar import Constraint, build_constraint
from caesura.inference.text import Detokenizer, StopStrings
from caesura.models.loading import Base, forward_logits

#: Below this a temperature is 0: the likeliest token is all but certain, and dividing by it overflows.
MIN_TEMPERATURE = 1e-5

#: From the logits of the next token to the token.
Choose = Callable[[Tensor], int]


def generate(base: Base, request: ChatRequest) -> Iterator[Piece]:
    """The answer: one `Text` a token, empty while text is held back, and one `Finished`.

    Raises InvalidRequest when the messages do not fit the chat template or the context window, or when answers
    cannot be held to the schema.
    """
    prompt_ids = encode_prompt(base, request)
    room = base.context_window - len(prompt_ids)
    if room < 1:
        raise InvalidRequest(
            f"This model's maximum context length is {base.context_window} tokens. However, your messages resulted "
            f"in {len(prompt_ids)} tokens. Please reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        )
    constraint = None if request.json_schema is None else build_constraint(base, request.json_schema)
    tokens = sample_tokens(base.model, prompt_ids, _constrained(_chooser(request, base.model), constraint))
    detokenizer = Detokenizer(lambda token_ids: base.tokenizer.decode(token_ids, skip_special_tokens=True))
    stops = StopStrings(request.stop)
    num_tokens, at_end = 0, False
    for token_id in islice(tokens, min(room, request.max_tokens or room)):
        num_tokens += 1
        at_end = token_id in base.eos_token_ids
        if at_end:
            break
        yield Text(stops.add(detokenizer.add(token_id)))
        at_end = constraint is not None and constraint.is_complete
        if at_end or stops.found:
            break
    if not stops.found:
        yield Text(stops.add(detokenizer.rest()) + stops.rest())
    yield Finished("stop" if at_end or stops.found else "length", len(prompt_ids), num_tokens)


def encode_prompt(base: Base, request: ChatRequest) -> list[int]:
    """The conversation up to where the answer begins."""
    try:
        encoding = base.tokenizer.apply_chat_template(
            template_messages(request.messages), tools=request.tools, add_generation_prompt=True, return_dict=True
        )
    except Exception as error:  # A template is foreign code: whatever it raises, it refuses the messages.
        raise InvalidRequest(
            f"The chat template of '{base.name}' does not take these messages: {error}", param="messages"
        ) from error
    return encoding["input_ids"]


def sample_tokens(model: nn.Module, prompt_ids: list[int], choose: Choose) -> Iterator[int]:
    """The tokens after the prompt, without end. One is computed when it is asked for."""
    device = next(model.parameters()).device
    config: Any = model.config
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    token_ids_BT = torch.tensor([prompt_ids], device=device)
    while True:
        token_id = choose(_next_logits(model, token_ids_BT, cache))
        yield token_id
        token_ids_BT = torch.tensor([[token_id]], device=device)


# On each step, not round the generator: between two tokens it would hold for whoever asks for them.
@torch.inference_mode()
def _next_logits(model: nn.Module, token_ids_BT: Tensor, cache: DynamicCache) -> Tensor:
    """The logits of the token after `token_ids_BT`, which follow what is in the cache and are added to it."""
    last_K = torch.tensor([token_ids_BT.shape[1] - 1], device=token_ids_BT.device)
    logits_BKV = forward_logits(model, token_ids_BT, last_K, past_key_values=cache, use_cache=True)
    return logits_BKV[0, 0].float()


def _chooser(request: ChatRequest, model: nn.Module) -> Choose:
    if request.temperature < MIN_TEMPERATURE:
        return lambda logits_V: int(logits_V.argmax())
    generator = torch.Generator(next(model.parameters()).device)
    if request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.seed)
    return lambda logits_V: draw_token(logits_V / request.temperature, request.top_p, generator)


def _constrained(choose: Choose, constraint: Constraint | None) -> Choose:
    """`choose` among the tokens that the grammar allows."""
    if constraint is None:
        return choose

    def choose_allowed(logits_V: Tensor) -> int:
        token_id = choose(constraint.mask(logits_V))
        constraint.accept(token_id)
        return token_id

    return choose_allowed


def draw_token(logits_V: Tensor, top_p: float, generator: torch.Generator) -> int:
    """A token of the smallest set of likeliest tokens whose probabilities reach `top_p`; the likeliest is always in."""
    probs_V = logits_V.softmax(-1)
    if top_p >= 1:
        return int(probs_V.multinomial(1, generator=generator))
    sorted_V, token_ids_V = probs_V.sort(descending=True, stable=True)
    is_dropped_V = sorted_V.cumsum(-1) - sorted_V >= top_p
    is_dropped_V[0] = False
    rank = sorted_V.masked_fill(is_dropped_V, 0).multinomial(1, generator=generator)
    return int(token_ids_V[rank])
