from __future__ import annotations

from typing import Any

import pytest

from caesura.graders.variables import item_paths

CHECK = {"type": "string_check", "input": "{{ sample.output_text }} {{item.a}}", "reference": "{{ item.b.c[0] }}"}
JUDGE = {
    "type": "score_model",
    "model": "{{ item.model }}",
    "input": [
        {"role": "user", "content": "{{ item.d }}"},
        {"role": "user", "content": [{"type": "input_text", "text": "{{ item['e f'] }}"}, "{{ item.g }}"]},
        {"role": "user", "content": {"type": "input_image", "image_url": "{{ item.h }}"}},
    ],
}
PYTHON = {"type": "python", "source": "def grade(sample, item): return '{{ item.x }}'"}


def texts(grader: dict[str, Any]) -> list[str]:
    return [path.text for path in item_paths(grader)]


@pytest.mark.parametrize(
    ("grader", "expected"),
    [
        (CHECK, ["item.a", "item.b.c[0]"]),
        (JUDGE, ["item.d", "item['e f']", "item.g", "item.h"]),
        (PYTHON, []),
        ({"type": "string_check", "input": "{{ item }}", "reference": "x"}, []),
        ({"type": "multi", "graders": {"one": CHECK, "two": PYTHON}}, ["item.a", "item.b.c[0]"]),
        (
            {"type": "multi", "graders": [CHECK, JUDGE, CHECK]},
            ["item.a", "item.b.c[0]", "item.d", "item['e f']", "item.g", "item.h"],
        ),
        ({"type": "multi", "graders": CHECK}, ["item.a", "item.b.c[0]"]),
        ({"type": "multi", "graders": {"type": CHECK}}, ["item.a", "item.b.c[0]"]),
    ],
    ids=["texts", "messages", "python", "the whole item", "map", "list", "one", "a map with a grader called type"],
)
def test_the_paths_that_templates_name(grader: dict[str, Any], expected: list[str]) -> None:
    assert texts(grader) == expected


def test_a_path_is_its_steps() -> None:
    assert [path.steps for path in item_paths(CHECK)] == [("a",), ("b", "c", 0)]
