"""What a faulty request is told: see `test_jobs_create` and `test_chat`. Here: there is always something to tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from caesura.api.errors import answer_error
from caesura.api.explain import MAX_QUOTED, explain, supported
from caesura.schema.chat import CreateChatCompletion
from caesura.schema.common import TAGS
from caesura.schema.completions import CreateCompletion
from caesura.schema.embeddings import CreateEmbeddings
from caesura.schema.jobs import CreateJob

#: Every string that JSON can spell, halves of surrogate pairs among them.
TEXT = st.text(st.characters(codec=None, exclude_categories=[])) | st.sampled_from([*sorted(TAGS), "[key]", "auto"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(SCALARS, lambda item: st.lists(item) | st.dictionaries(TEXT, item), max_leaves=5)
METHODS = st.fixed_dictionaries(
    {"type": st.just("supervised") | VALUES},
    optional={
        "supervised": VALUES
        | st.fixed_dictionaries(
            {"hyperparameters": st.dictionaries(st.sampled_from(["n_epochs", "learning_rate_multiplier"]), VALUES)}
        )
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool", "function"]) | VALUES,
            "tool_calls": VALUES,
            "content": VALUES
            | st.lists(
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["text", "refusal"]) | VALUES}, optional={"text": VALUES}
                )
            ),
        },
    )
)
TOOLS = st.lists(st.fixed_dictionaries({"type": st.just("function")}, optional={"function": VALUES}))


def bodies(model: type[BaseModel], **special: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with some of the model's fields and some of none."""
    known = {name: VALUES | special.get(name, VALUES) for name in model.model_fields}
    return st.builds(
        lambda fields, others: others | fields, st.fixed_dictionaries({}, optional=known), st.dictionaries(TEXT, VALUES)
    )


def check(model: type[BaseModel], body: Any) -> None:
    try:
        model.model_validate(body)
    except ValidationError as error:
        problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors()]
        answer = answer_error(explain(problems))
        told = json.loads(bytes(answer.body))["error"]
        assert answer.status_code == 400
        assert told["message"]
        assert told["code"]
        assert len(told["param"] or "") <= MAX_QUOTED + 1
        assert not any(tag in told["message"] for tag in TAGS if tag not in str(body))
        assert "another type" not in told["message"]


@settings(max_examples=50, deadline=None)
@given(bodies(CreateJob, method=METHODS))
def test_whatever_is_wrong_with_a_job_there_is_a_message(body: Any) -> None:
    check(CreateJob, body)


@settings(max_examples=50, deadline=None)
@given(bodies(CreateChatCompletion, messages=MESSAGES, tools=TOOLS))
def test_whatever_is_wrong_with_a_chat_there_is_a_message(body: Any) -> None:
    check(CreateChatCompletion, body)


@settings(max_examples=50, deadline=None)
@given(bodies(CreateCompletion))
def test_whatever_is_wrong_with_a_completion_there_is_a_message(body: Any) -> None:
    check(CreateCompletion, body)


@settings(max_examples=50, deadline=None)
@given(bodies(CreateEmbeddings))
def test_whatever_is_wrong_with_embeddings_there_is_a_message(body: Any) -> None:
    check(CreateEmbeddings, body)


@settings(deadline=None)
@given(VALUES)
def test_any_json_is_a_job_or_a_fault(body: Any) -> None:
    check(CreateJob, body)


@pytest.mark.parametrize(
    ("values", "told"), [(["'a'"], "'a'"), (["'a'", "'b'"], "'a' and 'b'"), (["'a'", "'b'", "1"], "'a', 'b', and 1")]
)
def test_choices_are_told_as_openai_tells_them(values: list[str], told: str) -> None:
    assert supported(values) == told


def test_a_string_that_is_no_unicode_is_told_as_such() -> None:
    with pytest.raises(ValidationError) as caught:
        CreateJob.model_validate({"model": "\ud800", "training_file": "f"})

    fault = explain([problem | {"loc": ("body", *problem["loc"])} for problem in caught.value.errors()])
    assert fault.message == "Invalid value for 'model': the string is not valid Unicode."
