"""A request → its answers, ready to be made: models loaded, the prompt encoded, whatever is at fault told."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from caesura.errors import InvalidRequest
from caesura.inference.answer import Answer, Functions, Script, spell_drawn
from caesura.inference.draw import Draw, Drawn, top_logprobs
from caesura.inference.engine import ChatRequest, CompletionRequest, Text
from caesura.inference.grammar import check_tools
from caesura.inference.library import Library, Loaded
from caesura.inference.prompt import Prompt, check_token_ids, encode_prompt
from caesura.inference.text import decoder_of
from caesura.models.decoding.adapters import LoadedAdapter


def prepare(library: Library, request: ChatRequest | CompletionRequest) -> list[Answer]:
    """The request's `n` answers. Raises what `Engine.generate` raises before the first piece."""
    loaded, adapter = library.find(request.base, request.adapter)
    vocab_size = loaded.decoder.vocab_size
    check_token_ids(list(request.logit_bias), vocab_size, "logit_bias")
    functions = _functions(loaded, request) if isinstance(request, ChatRequest) and request.tools else None
    prompt_ids = encode_prompt(loaded.base, request, vocab_size)
    if functions is not None and functions.is_required and functions.format.prefix:
        prompt_ids = prompt_ids + _encode_marker(loaded, functions.format.prefix)
    room = max(0, loaded.base.context_window - len(prompt_ids))
    script = Script(
        base=loaded.base,
        decoder=loaded.decoder,
        prompt=Prompt(prompt_ids, adapter),
        max_tokens=room if request.max_tokens is None else min(room, request.max_tokens),
        decode=decoder_of(loaded.base.tokenizer, functions.format.special_markers if functions else ()),
        stop=request.stop,
        json_schema=request.json_schema if isinstance(request, ChatRequest) else None,
        functions=functions,
        echo=_echo(loaded, request, prompt_ids, adapter) if isinstance(request, CompletionRequest) else (),
    )
    # A seed of the API has 64 bits, and so has one that nobody chose.
    seed = secrets.randbits(64) - 2**63 if request.seed is None else request.seed
    return [Answer(script, index, _draw(request, seed, index)) for index in range(request.n)]


def _draw(request: ChatRequest | CompletionRequest, seed: int, index: int) -> Draw:
    return Draw(
        seed,
        index,
        temperature=request.temperature,
        top_p=request.top_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        top_logprobs=request.top_logprobs,
    )


def _functions(loaded: Loaded, request: ChatRequest) -> Functions:
    format, name = loaded.tool_format, loaded.base.name
    if format is None:
        raise InvalidRequest(
            f"The chat template of '{name}' has no tool calls, or none in a form that is known here. Leave 'tools' "
            "out, or ask another model.",
            param="tools",
        )
    functions: list[dict[str, Any]] = [tool["function"] for tool in request.tools or ()]
    check_tools(loaded.base, format, functions)
    if isinstance(request.tool_choice, tuple):
        functions = [function for function in functions if function["name"] == request.tool_choice[1]]
    begin_ids = _encode_marker(loaded, format.begin)
    begin_id = begin_ids[0] if len(begin_ids) == 1 else None
    is_required = request.tool_choice != "auto"
    if request.json_schema is not None and begin_id is None and not is_required:
        raise InvalidRequest(
            f"'{name}' cannot be held to a 'response_format' and left free to call tools at the same time. Leave one "
            "of them out.",
            param="response_format",
        )
    return Functions(format, functions, request.parallel_tool_calls, is_required, begin_id)


def _encode_marker(loaded: Loaded, marker: str) -> list[int]:
    tokenizer: Any = loaded.base.tokenizer
    return tokenizer(marker, add_special_tokens=False)["input_ids"]


def _echo(
    loaded: Loaded, request: CompletionRequest, prompt_ids: Sequence[int], adapter: LoadedAdapter | None
) -> tuple[Text, ...]:
    if not request.echo:
        return ()
    tokenizer = loaded.base.tokenizer
    prompt = request.prompt
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=True)
    if request.top_logprobs is None:
        return (Text(text),)
    logits_TV = loaded.decoder.prompt_logits(prompt_ids, adapter)
    drawn = [Drawn(prompt_ids[0]), *top_logprobs(logits_TV[:-1], prompt_ids[1:], request.top_logprobs)]
    return (Text(text, logprobs=tuple(spell_drawn(loaded.base, one) for one in drawn)),)
