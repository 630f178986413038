"""Answers that may call tools, of the embedded base, which has learned to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from caesura.errors import InvalidRequest
from caesura.inference.engine import ChatRequest, Piece, Text, ToolArguments, ToolCall
from caesura.inference.library import Library
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, Settings
from caesura.storage import LocalStorage
from tests.inference.bases import llama_tokenizer, random_base
from tests.inference.making import finish_of, library_of, logprobs_of, make, text_of

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Get the {what} in a city", "parameters": CITY},
    }
    for name, what in (("get_weather", "weather"), ("get_time", "time"))
]
DIGIT: dict[str, Any] = {
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["digit"],
    "additionalProperties": False,
}
REQUEST = ChatRequest(
    EMBEDDED_BASE,
    None,
    [{"role": "user", "content": "What is the weather in Paris?"}],
    temperature=0,
    max_tokens=80,
    tools=TOOLS,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("data")
    return Library(Settings(data_dir=folder), LocalStorage(folder / "blobs"))


def begin_id(library: Library) -> int:
    """The token that begins a call."""
    tokenizer: Any = library.base(EMBEDDED_BASE).base.tokenizer
    (token_id,) = tokenizer("<tool_call>")["input_ids"]
    return token_id


def calls_of(pieces: list[Piece], index: int = 0) -> list[tuple[str, Any]]:
    """The functions that the answer calls, in order, and their arguments."""
    names = {piece.call: piece.name for piece in pieces if isinstance(piece, ToolCall) and piece.index == index}
    texts = dict.fromkeys(names, "")
    for piece in pieces:
        if isinstance(piece, ToolArguments) and piece.index == index:
            texts[piece.call] += piece.text
    assert list(names) == list(range(len(names)))
    return [(name, json.loads(texts[call])) for call, name in names.items()]


def test_a_question_for_the_weather_calls_the_function_for_the_weather(tiny: Library) -> None:
    pieces = make(tiny, REQUEST)

    assert calls_of(pieces) == [("get_weather", {"city": "Paris"})]
    assert pieces[0] == ToolCall(0, "get_weather")
    assert sum(isinstance(piece, ToolArguments) for piece in pieces) > 2
    assert text_of(pieces) == ""
    assert finish_of(pieces).finish_reason == "tool_calls"


def test_without_tools_the_same_marker_is_text(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, tools=None, logit_bias={begin_id(tiny): 100.0}, max_tokens=3))

    assert text_of(pieces) == "<tool_call>" * 3
    assert finish_of(pieces).finish_reason == "length"


def test_an_answer_that_is_free_to_call_may_say_something(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, logit_bias={begin_id(tiny): -100.0}, max_tokens=12))

    assert calls_of(pieces) == []
    assert text_of(pieces)
    assert finish_of(pieces).finish_reason != "tool_calls"


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("seed", range(5))
def test_the_arguments_of_a_call_are_of_the_parameters_however_it_is_drawn(
    tiny: Library, choice: Any, seed: int
) -> None:
    # A call is forced to begin, and then drawn from nearly anything.
    request = replace(
        REQUEST,
        tool_choice=choice,
        logit_bias={begin_id(tiny): 100.0},
        temperature=2.0,
        seed=seed,
        parallel_tool_calls=False,
        max_tokens=None,
    )

    ((name, arguments),) = calls_of(make(tiny, request))

    assert name in ("get_weather", "get_time")
    Draft202012Validator(CITY).validate(arguments)


@pytest.mark.parametrize("question", ["What is the weather in Paris?", "Hello!", "What is 1 + 1?"])
def test_an_answer_that_has_to_call_does(tiny: Library, question: str) -> None:
    # The marker is part of the prompt: it need not be drawn, and a bias against it has no say.
    request = replace(
        REQUEST,
        messages=[{"role": "user", "content": question}],
        tool_choice="required",
        parallel_tool_calls=False,
        logit_bias={begin_id(tiny): -100.0},
    )

    pieces = make(tiny, request)

    assert len(calls_of(pieces)) == 1
    assert text_of(pieces) == ""
    assert finish_of(pieces).finish_reason == "tool_calls"
    assert (
        finish_of(pieces).prompt_tokens == finish_of(make(tiny, replace(request, tool_choice="auto"))).prompt_tokens + 1
    )


def test_a_function_that_is_named_is_the_one_that_is_called(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, tool_choice=("function", "get_time")))

    assert calls_of(pieces) == [("get_time", {"city": "Paris"})]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_there_is_one_call_where_no_more_are_wanted_and_else_there_may_be_several(tiny: Library, choice: Any) -> None:
    # Whenever a call may begin it does.
    request = replace(REQUEST, tool_choice=choice, logit_bias={begin_id(tiny): 100.0}, max_tokens=100)

    pieces = make(tiny, request)
    assert len({piece.call for piece in pieces if isinstance(piece, ToolCall)}) > 2
    assert finish_of(pieces).finish_reason == "length"

    pieces = make(tiny, replace(request, parallel_tool_calls=False))
    assert len(calls_of(pieces)) == 1
    assert finish_of(pieces).finish_reason == "tool_calls"


def test_a_call_that_is_cut_off_says_so(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, max_tokens=15))

    assert ToolCall(0, "get_weather") in pieces
    assert finish_of(pieces).finish_reason == "length"


def test_each_of_several_answers_has_its_own_calls(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, n=3))

    assert [calls_of(pieces, index) for index in range(3)] == [[("get_weather", {"city": "Paris"})]] * 3


def test_an_answer_that_may_call_and_else_is_of_a_schema_is_one_or_the_other(tiny: Library) -> None:
    request = replace(REQUEST, json_schema=DIGIT)
    begin = begin_id(tiny)

    calling = make(tiny, replace(request, logit_bias={begin: 100.0}, parallel_tool_calls=False))
    saying = make(tiny, replace(request, logit_bias={begin: -100.0}))

    assert len(calls_of(calling)) == 1
    assert text_of(calling) == ""
    Draft202012Validator(DIGIT).validate(json.loads(text_of(saying)))
    assert calls_of(saying) == []
    assert [finish_of(pieces).finish_reason for pieces in (calling, saying)] == ["tool_calls", "stop"]


def test_a_call_that_is_required_leaves_no_place_for_a_schema(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, json_schema=DIGIT, tool_choice="required", parallel_tool_calls=False))

    assert len(calls_of(pieces)) == 1
    assert text_of(pieces) == ""


def test_log_probabilities_are_of_what_was_said_and_not_of_calls(tiny: Library) -> None:
    begin = begin_id(tiny)

    saying = make(tiny, replace(REQUEST, logit_bias={begin: -100.0}, top_logprobs=0, max_tokens=12))
    calling = make(tiny, replace(REQUEST, top_logprobs=0))

    spelled = b"".join(bytes(one.bytes) for one in logprobs_of(saying))
    assert spelled.decode() == text_of(saying)
    assert logprobs_of(calling) == []


def test_a_stop_string_ends_what_is_said_before_a_call(tiny: Library) -> None:
    request = replace(REQUEST, logit_bias={begin_id(tiny): -100.0}, max_tokens=12)
    whole = text_of(make(tiny, request))

    assert text_of(make(tiny, replace(request, stop=(whole[4:7],)))) == whole[: whole.index(whole[4:7])]


def test_tools_are_in_the_prompt(tiny: Library) -> None:
    with_tools = finish_of(make(tiny, REQUEST)).prompt_tokens

    assert with_tools > finish_of(make(tiny, replace(REQUEST, tools=None))).prompt_tokens + 50


def test_tools_are_refused_where_the_template_has_none(tmp_path: Path) -> None:
    library = library_of(random_base(tmp_path, llama_tokenizer(), vocab_size=400))

    with pytest.raises(InvalidRequest, match="chat template of 'micro' has no tool calls") as raised:
        make(library, replace(REQUEST, base="micro"))

    assert raised.value.param == "tools"


def test_a_schema_beside_tools_is_refused_where_no_single_token_begins_a_call(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = (EMBEDDED_BASE_PATH / "chat_template.jinja").read_text()
    library = library_of(replace(random_base(tmp_path, tokenizer, vocab_size=400), context_window=4096))
    request = replace(REQUEST, base="micro", json_schema=DIGIT, max_tokens=None, temperature=1.0, seed=0)

    with pytest.raises(InvalidRequest, match="cannot be held to a 'response_format' and left free") as raised:
        make(library, request)

    assert raised.value.param == "response_format"
    # Where there is no choice there is no difficulty.
    ((name, _),) = calls_of(
        make(library, replace(request, tool_choice=("function", "get_time"), parallel_tool_calls=False))
    )
    assert name == "get_time"


def test_parameters_that_cannot_be_held_to_are_refused_with_their_place(tiny: Library) -> None:
    broken = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "objekt"}}}}}

    with pytest.raises(InvalidRequest, match="objekt") as raised:
        make(tiny, replace(REQUEST, tools=[TOOLS[0], broken]))

    assert raised.value.param == "tools[1].function.parameters"


def test_text_and_calls_are_told_as_they_come(tiny: Library) -> None:
    pieces = make(tiny, replace(REQUEST, logit_bias={begin_id(tiny): -100.0}, max_tokens=12))

    assert sum(isinstance(piece, Text) for piece in pieces) > 3
