"""Completions and embeddings, as OpenAI's official client for Python sends and reads them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import OpenAI

from caesura.settings import EMBEDDED_BASE

PROMPT = "The sun rose over the"
REQUEST: Any = {"model": EMBEDDED_BASE, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
INPUTS = ["The sun rose over the sea.", "Bread", "The sun rose over the sea."]


def test_a_completion_and_its_stream_are_the_same(client: OpenAI) -> None:
    whole = client.completions.create(**REQUEST)
    chunks = list(client.completions.create(**REQUEST, stream=True))

    assert whole.id.startswith("cmpl-")
    assert (whole.object, whole.model) == ("text_completion", EMBEDDED_BASE)
    (choice,) = whole.choices
    assert choice.text
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_several_prompts_are_completed_in_their_order_as_often_as_asked(client: OpenAI) -> None:
    alone = client.completions.create(**REQUEST).choices[0].text

    choices = client.completions.create(**REQUEST | {"prompt": ["Bread is", PROMPT]}, n=2).choices

    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert [choice.text for choice in choices[2:]] == [alone, alone]
    assert choices[0].text == choices[1].text != alone


def test_log_probabilities_belong_to_the_tokens_of_the_prompt_and_of_its_completion(client: OpenAI) -> None:
    (plain,) = client.completions.create(**REQUEST).choices
    (echoed,) = client.completions.create(**REQUEST, echo=True, logprobs=2).choices

    assert echoed.text == PROMPT + plain.text
    assert echoed.logprobs is not None
    tokens, offsets = echoed.logprobs.tokens or [], echoed.logprobs.text_offset or []
    logprobs, tops = echoed.logprobs.token_logprobs or [], echoed.logprobs.top_logprobs or []
    assert "".join(tokens) == echoed.text
    assert offsets == [len("".join(tokens[:place])) for place in range(len(tokens))]
    assert (logprobs[0], tops[0]) == (None, None)  # nothing precedes the first
    assert all(logprob <= 0 for logprob in logprobs[1:])
    assert {len(top) for top in tops[1:]} <= {2, 3}  # the token itself, where it is not among the two


def test_embeddings_are_the_same_in_base64_and_in_plain_numbers(client: OpenAI) -> None:
    packed = client.embeddings.create(model=EMBEDDED_BASE, input=INPUTS)  # base64, unless it is told otherwise
    plain = client.embeddings.create(model=EMBEDDED_BASE, input=INPUTS, encoding_format="float")

    assert [item.index for item in packed.data] == [0, 1, 2]
    for item, same in zip(packed.data, plain.data, strict=True):
        assert item.embedding == pytest.approx(same.embedding, abs=1e-6)
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
    first, other, again = (item.embedding for item in packed.data)
    assert first == pytest.approx(again, abs=1e-5)
    assert math.dist(first, other) > 0.01
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0


def test_an_embedding_has_as_many_dimensions_as_asked(client: OpenAI) -> None:
    (item,) = client.embeddings.create(model=EMBEDDED_BASE, input="Bread", dimensions=16).data

    assert len(item.embedding) == 16
    assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
