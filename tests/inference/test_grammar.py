from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from caesura.errors import InvalidRequest
from caesura.inference.engine import ChatRequest, Finished
from caesura.inference.grammar import Constraint, build_constraint
from caesura.inference.prompt import encode_prompt
from caesura.models.loading import Base, load_base
from caesura.settings import BaseModelSettings
from tests.inference.bases import ROLE_TEMPLATE, llama_tokenizer, random_base
from tests.inference.making import finish_of, greedy_ids, library_of, make, plain_model, text_of

SAMPLED = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=1.0, seed=7, max_tokens=400)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}

names = st.text('abc_é"\\', min_size=1, max_size=4)
scalars = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(
        lambda low, high: {"type": "number", "minimum": low, "maximum": high}, st.integers(-9, 0), st.integers(1, 9)
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern},
        st.sampled_from(["^[a-c]{2,4}$", "^\\d+-x$", "^(ja|nein|😀)$"]),
    ),
    st.builds(lambda value: {"type": "string", "format": value}, st.sampled_from(["date", "ipv4", "uuid"])),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, st.integers(), st.none(), st.just([1])), min_size=1, max_size=3),
    ),
    st.builds(lambda value: {"const": value}, st.one_of(names, st.booleans(), st.just({"a": [None]}))),
)


def objects_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
        required = list(properties)[:num_required]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(build, st.dictionaries(names, inner, max_size=4), st.integers(0, 4))


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        objects_of(inner),
        st.builds(
            lambda items, size: {"type": "array", "items": items, "minItems": size, "maxItems": size + 2},
            inner,
            st.integers(0, 2),
        ),
        st.builds(lambda branches: {"anyOf": branches}, st.lists(inner, min_size=1, max_size=3)),
    )


schemas = st.recursive(scalars, nested, max_leaves=5)


@pytest.fixture(scope="module")
def base(micro_model: Path) -> Base:
    return load_base("micro", BaseModelSettings(path=str(micro_model)), torch.float32, torch.device("cpu"))


def answer(base: Base, request: ChatRequest) -> tuple[str, Finished]:
    pieces = make(library_of(base), request)
    return text_of(pieces), finish_of(pieces)


def check(text: str, schema: Any) -> None:
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    schema=schemas,
    seed=st.integers(0, 9),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.7, 1.0]),
)
def test_a_finished_answer_is_of_its_schema(
    base: Base, schema: Any, seed: int, temperature: float, top_p: float
) -> None:
    request = replace(SAMPLED, json_schema=schema, seed=seed, temperature=temperature, top_p=top_p)

    text, finished = answer(base, request)

    assume(finished.finish_reason == "stop")  # a number may have digits without end
    check(text, schema)


def test_the_likeliest_tokens_that_are_allowed_are_taken_at_temperature_0(base: Base) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}

    text, finished = answer(base, replace(SAMPLED, temperature=0, json_schema=schema))

    check(text, schema)
    assert finished.finish_reason == "stop"


def test_an_end_token_cannot_come_before_the_answer_is_whole(base: Base, micro_model: Path) -> None:
    """Here the end token is the one that the model likes best."""
    prompt_ids = encode_prompt(base, SAMPLED, 2048)
    ending = replace(base, eos_token_ids=frozenset(greedy_ids(plain_model(micro_model), prompt_ids, 1)))
    greedy = replace(SAMPLED, temperature=0)
    assert answer(ending, greedy) == ("", Finished("stop", len(prompt_ids), 1))

    text, finished = answer(ending, replace(greedy, json_schema=PERSON))

    check(text, PERSON)
    assert finished.finish_reason == "stop"


def test_every_end_token_of_the_model_may_end_an_answer_that_could_go_on(base: Base) -> None:
    ending = replace(base, eos_token_ids=frozenset({0, 2}))
    constraint = build_constraint(ending, {"type": "integer"})
    end = torch.tensor([0, 2])
    assert constraint.mask(torch.zeros(2048))[end].isinf().all()

    constraint.accept(*tokens_of(base, "1"))

    assert (constraint.mask(torch.zeros(2048))[end] == 0).all()
    assert not constraint.is_complete
    constraint.accept(0)
    assert constraint.is_complete


def test_an_answer_that_cannot_go_on_needs_no_end_token(base: Base) -> None:
    text, finished = answer(base, replace(SAMPLED, json_schema={"const": 7}, max_tokens=1))

    assert (text, finished.finish_reason, finished.completion_tokens) == ("7", "stop", 1)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(base: Base) -> None:
    request = replace(SAMPLED, json_schema=PERSON)
    first = answer(base, request)
    torch.rand(3)

    assert answer(base, request) == first
    assert answer(base, replace(request, seed=8)) != first


def test_an_answer_that_is_cut_says_so(base: Base) -> None:
    text, finished = answer(base, replace(SAMPLED, json_schema=PERSON, max_tokens=5))

    assert text.startswith("{")
    assert finished.finish_reason == "length"


def test_a_stop_string_ends_an_answer_before_it_is_whole(base: Base) -> None:
    whole, _ = answer(base, replace(SAMPLED, json_schema=PERSON))

    text, finished = answer(base, replace(SAMPLED, json_schema=PERSON, stop=('"age"',)))

    assert text == whole[: whole.index('"age"')]
    assert finished.finish_reason == "stop"


@pytest.mark.parametrize(
    ("text", "is_possible"),
    [
        ('{"a":1,"b":[2,3]}', True),
        ('{"a": 1, "b": [2, 3]}', True),
        (' {"a":1,"b":[2,3]}', False),
        ('{"a":  1,"b":[2,3]}', False),
        ('{"a":1,\n"b":[2,3]}', False),
        ('{ "a":1,"b":[2,3] }', False),
    ],
)
def test_between_its_values_an_answer_has_at_most_a_space(base: Base, text: str, is_possible: bool) -> None:
    integer = {"type": "integer"}
    properties = {"a": integer, "b": {"type": "array", "items": integer}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}

    assert accepts(base, build_constraint(base, schema), text) == is_possible


def accepts(base: Base, constraint: Constraint, text: str) -> bool:
    for token_id in tokens_of(base, text):
        if constraint.mask(torch.zeros(2048))[token_id] == -torch.inf:
            return False
        constraint.accept(token_id)
    return constraint.is_complete


def tokens_of(base: Base, text: str) -> list[int]:
    tokenizer: Any = base.tokenizer
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "objekt"}, "objekt"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": r"\bword\b"}, "look"),
        ({"type": "string", "pattern": "(" * 1000}, "regex parse error"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than maximum \(3\)"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"allOf": [{"$ref": "#"}]}, "no answer satisfies it"),
        ({"const": "\ud800"}, "hex escape"),
        ({"minimum": float("nan")}, "expected value"),
        # Options of the library, not of JSON Schema: they have no say.
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}], "x-guidance": {"coerce_one_of": True}}, "oneOf"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(base: Base, schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=f"Invalid schema for 'response_format': .*{reason}") as raised:
        answer(base, replace(SAMPLED, json_schema=schema))

    assert raised.value.param == "response_format.json_schema.schema"
    assert len(raised.value.message) < 320


def test_a_schema_that_proves_too_large_in_the_middle_is_refused_too(base: Base) -> None:
    properties = {f"p{index}": {"type": "string"} for index in range(990)}

    with pytest.raises(InvalidRequest, match="Current row has") as raised:
        answer(base, replace(SAMPLED, json_schema={"type": "object", "properties": properties}))

    assert "non-verbose" not in raised.value.message


def test_there_is_no_mask_where_nothing_can_come(base: Base) -> None:
    with pytest.raises(InvalidRequest, match="no answer satisfies it"):
        build_constraint(base, {"allOf": [{"$ref": "#"}]}).mask(torch.zeros(2048))


def test_a_slow_tokenizer_is_refused(base: Base) -> None:
    tokenizer: Any = ByT5Tokenizer(chat_template=ROLE_TEMPLATE)

    with pytest.raises(InvalidRequest, match=r"'micro' cannot be held to a schema.*fast tokenizers") as raised:
        answer(replace(base, tokenizer=tokenizer), replace(SAMPLED, json_schema=PERSON))

    assert raised.value.param == "response_format"


def test_added_tokens_and_those_without_text_never_come_in_an_answer(tmp_path: Path, micro_model: Path) -> None:
    """Here the model has more tokens than its tokenizer, and the tokenizer three more than it was trained with."""
    base = random_base(tmp_path, PreTrainedTokenizerFast.from_pretrained(micro_model), vocab_size=2100)
    tokenizer: Any = base.tokenizer
    tokenizer.add_tokens([AddedToken("<end>", special=True), AddedToken("<think2>"), AddedToken("verbatim")])
    constraint = build_constraint(base, {"type": "string"})
    constraint.accept(*tokens_of(base, '"'))

    logits_V = constraint.mask(torch.zeros(2100))

    assert logits_V[[2048, 2049]].isinf().all()
    assert logits_V[2050] == 0
    assert logits_V[2051:].isinf().all()
    check(answer(base, replace(SAMPLED, json_schema=PERSON))[0], PERSON)


def test_tokenizers_that_mark_spaces_and_spell_bytes_are_held_too(tmp_path: Path) -> None:
    base = random_base(tmp_path, llama_tokenizer(), vocab_size=400)
    schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 2, "maxLength": 6},
        "minItems": 2,
        "maxItems": 2,
    }

    texts = [answer(base, replace(SAMPLED, json_schema=schema, seed=seed))[0] for seed in range(20)]

    for text in texts:
        check(text, schema)
    assert any(not text.isascii() for text in texts)
