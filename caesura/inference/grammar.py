"""A JSON schema, or the functions that can be called → which tokens may come next. What keeps to them is valid JSON of
the schema, or calls of the functions, once it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from caesura.errors import InvalidRequest
from caesura.inference.tools import ToolFormat
from caesura.models.loading import Base

#: Where the library looks for its options in a schema. It is no keyword of JSON Schema.
_OPTIONS = "x-guidance"
#: The arguments of a function that has no parameters.
_NO_PARAMETERS: dict[str, Any] = {"properties": {}, "additionalProperties": False}
#: How the library says that nothing can come next.
_NO_ANSWER = "NoExtension"
#: What it writes in the place of the parser's state, which is for its developers.
_WITHOUT_STATE = "<non-verbose/>"
#: Characters of its reason that are told: some quote a whole pattern.
MAX_REASON = 200
_LIMITS = LLParserLimits(verbose_errors=False)

#: From the library's reason to the error that names what of the request is at fault.
_Refuse = Callable[[str], InvalidRequest]


class Constraint:
    """Where one answer stands in its grammar: ask `mask` and tell `accept`, in turn."""

    def __init__(self, matcher: LLMatcher, vocabulary: LLTokenizer, refuse: _Refuse) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._refuse = refuse

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, and only its end could follow or has followed."""
        return self._matcher.is_stopped()

    def mask(self, logits_V: Tensor) -> Tensor:
        """The logits, at minus infinity where a token cannot come next. An end token can where the answer is whole.

        Raises InvalidRequest when the grammar proves too large here, or to have no answer at all.
        """
        allowed = bytearray(self._matcher.compute_logit_bias())
        self.check()
        # A byte a token; 0: it cannot come.
        allowed_V = torch.frombuffer(allowed, dtype=torch.uint8)[: len(logits_V)].to(logits_V.device)
        return logits_V.masked_fill(allowed_V == 0, -torch.inf)

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token, which `mask` left possible."""
        self._matcher.consume_token(token_id)
        self.check()

    def accept_text(self, text: str) -> bool:
        """Whether the answer can go on with this text, which came without being asked about. If not, it has no use
        any more.
        """
        # Not as the tokenizer would cut it: that makes markers of their text, which are no text in the grammar.
        token_ids = self._vocabulary.greedy_tokenize(text)
        return self._matcher.try_consume_tokens(token_ids) == len(token_ids)

    def check(self) -> None:
        """Raises InvalidRequest, with the library's reason, once the grammar cannot be followed."""
        if self._matcher.is_error():
            raise self._refuse(self._matcher.get_error())


def build_constraint(base: Base, schema: dict[str, Any]) -> Constraint:
    """The beginning of an answer of `base` to which the schema applies.

    Raises InvalidRequest when the schema says what cannot be held to, or the base's tokenizer is a slow one.
    """
    refuse = partial(_refuse, "'response_format'", "response_format.json_schema.schema")
    return _build(_vocabulary_of(base, "response_format"), _schema_grammar(schema, refuse, is_lenient=False), refuse)


def build_call_constraint(
    base: Base, format: ToolFormat, functions: Sequence[dict[str, Any]], *, parallel: bool
) -> Constraint:
    """What follows the marker with which `base` begins to call one of the functions, up to the end of the calls.

    The functions are those of a request, `{"name", "parameters", "strict"}`, which `check_tools` let pass. More than
    one call can come where the format has them in one block, and only if `parallel`.
    Raises InvalidRequest when all of them together prove too large, or the base's tokenizer is a slow one.
    """
    vocabulary = _vocabulary_of(base, "tools")
    grammar = call_grammar(vocabulary, format, functions, parallel=parallel)
    return _build(vocabulary, grammar, partial(_refuse, "the functions", "tools"))


def check_tools(base: Base, format: ToolFormat, functions: Sequence[dict[str, Any]]) -> None:
    """Raises InvalidRequest when a call of the functions could not be held to their parameters, naming which, or as
    `build_call_constraint` does. In a function that is not `strict`, a keyword that the library does not know is none.
    """
    vocabulary = _vocabulary_of(base, "tools")
    for index, function in enumerate(functions):
        param = f"tools[{index}].function.parameters"
        refuse = partial(_refuse, f"function '{function['name']}'", param)
        schema = _parameters(function)
        if schema["type"] != "object":
            raise refuse(f'it is of type {json.dumps(schema["type"])}, and arguments are of type "object"')
        grammar = _schema_grammar(schema, refuse, is_lenient=not function.get("strict"))
        constraint = _build(vocabulary, grammar, refuse)
        # That there are too many properties shows where they begin.
        constraint.accept_text("{")
        constraint.check()
    build_call_constraint(base, format, functions, parallel=True)


def call_grammar(
    vocabulary: LLTokenizer, format: ToolFormat, functions: Sequence[dict[str, Any]], *, parallel: bool
) -> str:
    """The grammar of calls after their begin marker, up to and with their end marker.

    A schema is a document of its own in it, so that its references hold. Space is as in `_schema_text`, and one more
    character of it can stand at either end of a block.
    """
    calls = " | ".join(f"call_{index}" for index in range(len(functions)))
    more = f"({_quote(format.separator)} SPACE? call)*" if parallel and format.separator else ""
    end = f"GAP? {_symbol(vocabulary, format.end)}" if format.end else ""
    rules = [
        "%llguidance {}",
        f"start: GAP? {_quote(format.opening)} call {more} {end}",
        f"call: {calls}",
        'SPACE: " "',
        r"GAP: /[ \n]/",
    ]
    for index, function in enumerate(functions):
        name = json.dumps(function["name"], ensure_ascii=False)
        parts = ('{"name":', f"{name},", f'"{format.arguments_key}":')
        rules += [
            f'call_{index}: {" SPACE? ".join(map(_quote, parts))} SPACE? arguments_{index} "}}"',
            f"arguments_{index}: %json {_schema_text(_parameters(function), is_lenient=not function.get('strict'))}",
        ]
    return LLMatcher.grammar_from_lark("\n".join(rules))


def spell(base: Base, token_id: int) -> bytes:
    """The bytes of a token; of a special one its name. Raises InvalidRequest when the base's tokenizer is slow."""
    return _vocabulary_of(base, "logprobs").decode_bytes([token_id])


def _symbol(vocabulary: LLTokenizer, marker: str) -> str:
    """A marker in a grammar: its token where it is one, which then has no text there."""
    token_ids = vocabulary.tokenize_str(marker, parse_special=True)
    is_token = len(token_ids) == 1 and vocabulary.is_special_token(token_ids[0])
    return f"<[{token_ids[0]}]>" if is_token else _quote(marker)


def _quote(text: str) -> str:
    """Text in a grammar."""
    return json.dumps(text)


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object"} | (function.get("parameters") or _NO_PARAMETERS)


def _schema_grammar(schema: dict[str, Any], refuse: _Refuse, *, is_lenient: bool) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(_schema_text(schema, is_lenient=is_lenient))
    except ValueError as error:
        raise refuse(str(error)) from error


def _schema_text(schema: dict[str, Any], *, is_lenient: bool) -> str:
    """The schema as the library reads it: with its options inside, in the place of any that came along."""
    options = {
        # A space after a colon or a comma is the model's choice. More is not: small models fall into filling lines.
        "whitespace_flexible": False,
        "key_separator": ":[ ]?",
        "item_separator": ",[ ]?",
        # Else what the library does not know is a fault: an answer might not be of the schema.
        "lenient": is_lenient,
    }
    return json.dumps({**schema, _OPTIONS: options})


def _build(vocabulary: LLTokenizer, grammar: str, refuse: _Refuse) -> Constraint:
    constraint = Constraint(LLMatcher(vocabulary, grammar, log_level=0, limits=_LIMITS), vocabulary, refuse)
    constraint.check()
    return constraint


def _vocabulary_of(base: Base, param: str) -> LLTokenizer:
    config: Any = base.model.config
    num_tokens = config.get_text_config(decoder=True).vocab_size
    try:
        return _vocabulary(base.tokenizer, num_tokens, base.eos_token_ids)
    except ValueError as error:
        raise InvalidRequest(
            f"The answers of '{base.name}' cannot be held to a schema, because of its tokenizer: {error}. Leave "
            f"'{param}' out, or ask another model.",
            param=param,
        ) from error


# For a large vocabulary it takes a second, and a base's is the same for every answer.
@cache
def _vocabulary(tokenizer: Any, num_tokens: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """The bytes of every token. Where the model has more tokens than its tokenizer, these can never come."""
    return from_tokenizer(tokenizer, max(num_tokens, len(tokenizer)), sorted(eos_token_ids) or None)


def _refuse(subject: str, param: str, reason: str) -> InvalidRequest:
    words = reason.removesuffix(_WITHOUT_STATE).split()
    reason = "no answer satisfies it" if _NO_ANSWER in reason else " ".join(words)[:MAX_REASON]
    return InvalidRequest(
        f"Invalid schema for {subject}: {reason}. Leave out or rewrite what it names.",
        param=param,
    )
