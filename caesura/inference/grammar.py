"""A JSON schema → which tokens may come next. An answer that keeps to them is of the schema once it is whole."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from caesura.errors import InvalidRequest
from caesura.models.loading import Base

#: Options for the library in a schema. They are no keyword of JSON Schema, and would undo our own.
_OWN_OPTIONS = "x-guidance"
#: How the library says that nothing can come next.
_NO_ANSWER = "NoExtension"
#: What it writes in the place of the parser's state, which is for its developers.
_WITHOUT_STATE = "<non-verbose/>"
#: Characters of its reason that are told: some quote a whole pattern.
MAX_REASON = 200
_LIMITS = LLParserLimits(verbose_errors=False)


class Constraint:
    """Where one answer stands in its grammar: ask `mask` and tell `accept`, in turn."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

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

    def check(self) -> None:
        """Raises InvalidRequest, with the library's reason, once the grammar cannot be followed."""
        if self._matcher.is_error():
            raise _refuse(self._matcher.get_error())


def build_constraint(base: Base, schema: dict[str, Any]) -> Constraint:
    """The beginning of an answer of `base` to which the schema applies.

    Raises InvalidRequest when the schema says what cannot be held to, or the base's tokenizer is a slow one.
    """
    config: Any = base.model.config
    num_tokens = config.get_text_config(decoder=True).vocab_size
    try:
        vocabulary = _vocabulary(base.tokenizer, num_tokens, base.eos_token_ids)
    except ValueError as error:
        raise InvalidRequest(
            f"The answers of '{base.name}' cannot be held to a schema, because of its tokenizer: {error}. Leave "
            "'response_format' out, or ask another model.",
            param="response_format",
        ) from error
    constraint = Constraint(LLMatcher(vocabulary, _grammar(schema), log_level=0, limits=_LIMITS))
    constraint.check()
    return constraint


def _grammar(schema: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in schema.items() if key != _OWN_OPTIONS})
    # A space after a colon or a comma is the model's choice. More is not: small models fall into filling lines with it.
    # What the library does not know is a fault (not `lenient`), else an answer might not be of the schema.
    try:
        return LLMatcher.grammar_from_json_schema(
            text,
            overrides={
                "whitespace_flexible": False,
                "key_separator": ":[ ]?",
                "item_separator": ",[ ]?",
                "lenient": False,
            },
        )
    except ValueError as error:
        raise _refuse(str(error)) from error


# For a large vocabulary it takes a second, and a base's is the same for every answer.
@cache
def _vocabulary(tokenizer: Any, num_tokens: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """The bytes of every token. Where the model has more tokens than its tokenizer, these can never come."""
    return from_tokenizer(tokenizer, max(num_tokens, len(tokenizer)), sorted(eos_token_ids) or None)


def _refuse(reason: str) -> InvalidRequest:
    words = reason.removesuffix(_WITHOUT_STATE).split()
    reason = "no answer satisfies it" if _NO_ANSWER in reason else " ".join(words)[:MAX_REASON]
    return InvalidRequest(
        f"Invalid schema for 'response_format': {reason}. Leave out or rewrite what it names.",
        param="response_format.json_schema.schema",
    )
