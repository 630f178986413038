"""Calls that are written in their grammar, whatever a model would like to write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from caesura.errors import InvalidRequest
from caesura.inference.grammar import Constraint, build_call_constraint, check_tools
from caesura.inference.tools import FORMATS, HERMES, LLAMA, MISTRAL, CallArguments, CallBegun, ToolFormat, ToolScanner
from caesura.models.loading import Base, load_base
from caesura.settings import BaseModelSettings
from tests.inference.bases import ROLE_TEMPLATE, llama_tokenizer, random_base

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FUNCTIONS: list[dict[str, Any]] = [
    {"name": "greet", "parameters": PERSON},
    {
        "name": "greet_all",
        "parameters": {
            "$defs": {"person": PERSON},
            "properties": {"people": {"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 2}},
            "required": ["people"],
            "additionalProperties": False,
        },
    },
    {
        "name": "weiß",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"of": {"enum": ["</tool_call>", '"}]', "é😀"]}},
            "required": ["of"],
            "additionalProperties": False,
        },
    },
    {"name": "stop"},
]
NO_ARGUMENTS = {"type": "object", "additionalProperties": False}


@pytest.fixture(scope="module")
def base(micro_model: Path) -> Base:
    return load_base("micro", BaseModelSettings(path=str(micro_model)), torch.float32, torch.device("cpu"))


def write_calls(base: Base, constraint: Constraint, seed: int) -> str:
    """An answer from where the constraint stands to its end, each token drawn among those that are allowed."""
    tokenizer: Any = base.tokenizer
    generator = torch.Generator().manual_seed(seed)
    token_ids: list[int] = []
    while not constraint.is_complete:
        token_id = int(constraint.mask(torch.randn(len(tokenizer), generator=generator)).argmax())
        if token_id in base.eos_token_ids:
            break
        constraint.accept(token_id)
        token_ids.append(token_id)
    return base.tokenizer.decode(token_ids, skip_special_tokens=False)


def tokens_of(base: Base, text: str) -> list[int]:
    tokenizer: Any = base.tokenizer
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def read_calls(format: ToolFormat, text: str) -> list[tuple[str, str]]:
    """The names and arguments of the calls that are this text after its begin marker, and nothing else."""
    scanner = ToolScanner(format, [function["name"] for function in FUNCTIONS], in_call=True)
    events = scanner.add(text) + scanner.finish()
    assert not scanner.is_in_call or format is LLAMA
    begun, arguments, _ = (events[place::3] for place in range(3))
    return [
        (begin.name, argument.text)
        for begin, argument in zip(begun, arguments, strict=True)
        if isinstance(begin, CallBegun) and isinstance(argument, CallArguments)
    ]


def check_calls(format: ToolFormat, text: str, functions: list[dict[str, Any]]) -> list[str]:
    """The names of the calls, whose arguments are of their functions' schemas."""
    schemas = {function["name"]: function.get("parameters", NO_ARGUMENTS) for function in functions}
    calls = read_calls(format, text)
    assert calls
    for name, arguments in calls:
        Draft202012Validator(schemas[name]).validate(json.loads(arguments))
    return [name for name, _ in calls]


@pytest.mark.parametrize("format", FORMATS)
def test_calls_are_of_the_functions_and_their_arguments_of_the_schemas(base: Base, format: ToolFormat) -> None:
    check_tools(base, format, FUNCTIONS)

    answers = [
        write_calls(base, build_call_constraint(base, format, FUNCTIONS, parallel=True), seed) for seed in range(40)
    ]

    called = [check_calls(format, answer, FUNCTIONS) for answer in answers]
    assert {name for names in called for name in names} == {function["name"] for function in FUNCTIONS}
    assert any(len(names) > 1 for names in called) == (format is not HERMES)
    assert all(answer.endswith(format.end) for answer in answers)


@pytest.mark.parametrize("format", FORMATS)
def test_there_is_one_call_where_no_more_are_wanted(base: Base, format: ToolFormat) -> None:
    for seed in range(40):
        constraint = build_call_constraint(base, format, FUNCTIONS, parallel=False)
        assert len(check_calls(format, write_calls(base, constraint, seed), FUNCTIONS)) == 1
        assert constraint.is_complete


@pytest.mark.parametrize("format", FORMATS)
def test_a_named_function_is_the_only_one_that_is_called(base: Base, format: ToolFormat) -> None:
    for seed in range(5):
        constraint = build_call_constraint(base, format, FUNCTIONS[:1], parallel=False)
        assert check_calls(format, write_calls(base, constraint, seed), FUNCTIONS) == ["greet"]


@pytest.mark.parametrize(
    ("format", "begun"),
    [
        (HERMES, '\n{"name": "greet_all", "arguments": {"peo'),
        (HERMES, '{"name":"gre'),
        (HERMES, '{"name": "stop", "arguments": {}}\n'),
        (MISTRAL, ' [{"name": "stop", "arguments": {}}, {"name": "weiß", "arguments": {"of": "é'),
        (MISTRAL, ""),
        (LLAMA, '{"name": "weiß", "parameters": {"of": "</tool_call>"}}; '),
    ],
)
def test_a_call_that_was_begun_freely_is_ended_in_its_grammar(base: Base, format: ToolFormat, begun: str) -> None:
    for seed in range(10):
        constraint = build_call_constraint(base, format, FUNCTIONS, parallel=True)
        assert constraint.accept_text(begun)
        check_calls(format, begun + write_calls(base, constraint, seed), FUNCTIONS)


@pytest.mark.parametrize(
    "begun", ['{"name": "unknown"', '{"arguments": {}', '{"name": "stop", "arguments": {"a"', "\n\n{", "Hello"]
)
def test_what_is_no_call_of_the_functions_is_not_accepted(base: Base, begun: str) -> None:
    assert not build_call_constraint(base, HERMES, FUNCTIONS, parallel=True).accept_text(begun)


def test_an_end_marker_is_its_token_where_the_tokenizer_has_one_and_else_text(
    base: Base, tmp_path: Path, micro_model: Path
) -> None:
    """The embedded base's is an added token, but no special one; others' are special, and Llama 2's none at all."""
    special = PreTrainedTokenizerFast.from_pretrained(micro_model)
    special.add_tokens([AddedToken("</tool_call>", special=True)])
    of_added = base
    of_special = random_base(tmp_path / "special", special, vocab_size=2048)
    of_text = random_base(tmp_path / "text", llama_tokenizer(), vocab_size=400)

    for of, is_token in ((of_added, True), (of_special, True), (of_text, False)):
        assert (len(tokens_of(of, "</tool_call>")) == 1) == is_token
        constraint = build_call_constraint(of, HERMES, FUNCTIONS, parallel=True)
        assert constraint.accept_text('{"name": "stop", "arguments": {}}')
        end = write_calls(of, constraint, seed=0)
        assert end.strip() == "</tool_call>"
        check_calls(HERMES, write_calls(of, build_call_constraint(of, HERMES, FUNCTIONS, parallel=True), 1), FUNCTIONS)


@pytest.mark.parametrize(
    ("parameters", "strict", "reason"),
    [
        ({"type": 5}, False, "type 5"),
        ({"type": "string"}, False, 'type "string"'),
        ({"properties": {"a": {"type": 5}}}, None, "type must be a string"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, False, "missing"),
        ({"properties": {"a": {"pattern": "("}}}, False, "unclosed group"),
        ({"properties": {"a": {"const": "\ud800"}}}, False, "hex escape"),
        ({"properties": {"a": {"not": {}}}}, True, "not"),
        ({"properties": {"a": {"not": {}}}, "x-guidance": {"lenient": True}}, True, "not"),
        ({"properties": {f"p{index}": {"type": "string"} for index in range(990)}}, False, "Current row has"),
    ],
)
def test_parameters_that_cannot_be_held_to_are_refused_with_their_place(
    base: Base, parameters: dict[str, Any], strict: bool | None, reason: str
) -> None:
    functions = [FUNCTIONS[0], {"name": "faulty", "parameters": parameters, "strict": strict}]

    with pytest.raises(InvalidRequest, match=f"Invalid schema for function 'faulty': .*{reason}") as raised:
        check_tools(base, HERMES, functions)

    assert raised.value.param == "tools[1].function.parameters"
    assert len(raised.value.message) < 320


def test_unknown_keywords_have_no_say_in_a_function_that_is_not_strict(base: Base) -> None:
    parameters = PERSON | {"not": {}, "x-guidance": {"lenient": False, "whitespace_flexible": True}}
    functions = [{"name": "greet", "parameters": parameters}]

    check_tools(base, HERMES, functions)

    constraint = build_call_constraint(base, HERMES, functions, parallel=True)
    check_calls(HERMES, write_calls(base, constraint, seed=0), FUNCTIONS)
    constraint = build_call_constraint(base, HERMES, functions, parallel=True)
    assert not constraint.accept_text('{"name": "greet", "arguments": {  "name"')


def test_tools_are_refused_where_the_tokenizer_is_a_slow_one(base: Base) -> None:
    tokenizer: Any = ByT5Tokenizer(chat_template=ROLE_TEMPLATE)

    with pytest.raises(InvalidRequest, match=r"fast tokenizers.*Leave 'tools' out") as raised:
        check_tools(replace(base, tokenizer=tokenizer), HERMES, FUNCTIONS)

    assert raised.value.param == "tools"
