"""Several answers to one request (`n`)."""

from __future__ import annotations

from typing import Any

import pytest

from caesura.inference.engine import Finished, Text
from tests.api.service import EngineDouble, Service
from tests.api.test_chat import MESSAGES, post, stream

#: Of three answers, in turn.
MIXED: Any = [
    Text("b", 1),
    Text("a", 0),
    Finished("length", 5, 9, 2),
    Text("B", 1),
    Finished("stop", 5, 2, 1),
    Finished("stop", 5, 1, 0),
]


def test_several_answers_are_told_by_their_index_and_the_prompt_counts_once(
    service: Service, engine: EngineDouble
) -> None:
    engine.pieces = MIXED
    completion = service.client.chat.completions.create(model="caesura-tiny", messages=MESSAGES, n=3)

    told = [(choice.index, choice.message.content, choice.finish_reason) for choice in completion.choices]
    assert told == [(0, "a", "stop"), (1, "bB", "stop"), (2, "", "length")]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 12)
    assert completion.usage.total_tokens == 17


def test_each_of_several_answers_has_its_role_its_pieces_and_its_end_in_a_stream(
    service: Service, engine: EngineDouble
) -> None:
    engine.pieces = MIXED
    *chunks, usage, done = stream(service, n=3, stream_options={"include_usage": True})

    assert done == "[DONE]"
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (5, 12)
    by_index: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        by_index[choice["index"]].append((choice["delta"], choice["finish_reason"]))
    role = ({"role": "assistant", "content": "", "refusal": None}, None)
    assert by_index == {
        0: [role, ({"content": "a"}, None), ({}, "stop")],
        1: [role, ({"content": "b"}, None), ({"content": "B"}, None), ({}, "stop")],
        2: [role, ({}, "length")],
    }


@pytest.mark.parametrize("streams", [False, True])
def test_an_engine_that_forgets_one_of_several_answers_is_a_fault(
    service: Service, engine: EngineDouble, streams: bool
) -> None:
    engine.pieces = [Text("a", 0), Finished("stop", 5, 1, 0), Finished("stop", 5, 1, 0)]
    answer = post(service, n=2, stream=streams)

    assert "The server had an error while processing your request." in answer.text
    assert "[DONE]" not in answer.text
