from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.errors import InvalidGrader
from caesura.graders.grade import GraderFault, Observation, observe_text
from caesura.graders.template import MAX_RENDERED_CHARACTERS, parse_template

ITEM: dict[str, Any] = {
    "answer": "Oslo",
    "number": 3.5,
    "count": 7,
    "yes": True,
    "nothing": None,
    "answers": [{"text": "a"}, {"text": "ü"}],
    "two words": "blank",
    "quote's": "double",
    "nested": {"deep": {"er": [[1, 2], [3]]}},
    "größe": "big",
    "output_json": None,
}
SAMPLE_TEXT = '{"city": "Oslo", "tags": ["x", {"y": 1}]}'


def render(text: str, item: dict[str, Any] = ITEM, sample: str = SAMPLE_TEXT) -> str:
    return parse_template(text, "p").render(observe_text(sample, item))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{item.answer}}", "Oslo"),
        ("{{ item.answer }}", "Oslo"),
        ("{{\n item.answer\t}}", "Oslo"),
        ("<{{ item.answer }}|{{item.count}}>", "<Oslo|7>"),
        ("{{ item.number }}", "3.5"),
        ("{{ item.yes }}", "true"),
        ("{{ item.nothing }}", "null"),
        ("{{ item.output_json }}", "null"),
        ("{{ item.answers }}", '[{"text":"a"},{"text":"ü"}]'),
        ("{{ item.answers[1].text }}", "ü"),
        ("{{ item.answers[-1].text }}", "ü"),
        ("{{ item['two words'] }}", "blank"),
        ('{{ item["quote\'s"] }}', "double"),
        ("{{ item['answers'][0]['text'] }}", "a"),
        ("{{ item.nested.deep.er[0][1] }}", "2"),
        ("{{ item.größe }}", "big"),
        ("{{ sample.output_text }}", SAMPLE_TEXT),
        ("{{ sample.output_json }}", '{"city":"Oslo","tags":["x",{"y":1}]}'),
        ("{{ sample.output_json.city }}", "Oslo"),
        ("{{ sample.output_json.tags[1].y }}", "1"),
        ("{{ sample.choices[0].message.content }}", SAMPLE_TEXT),
        ("{{ sample.choices[0].finish_reason }}", "stop"),
        ("{{ sample.output_tools }}", "[]"),
        ("{ {item.answer} }", "{ {item.answer} }"),
        ('{"a":{"b":{{item.count}}}}', '{"a":{"b":7}}'),
        ("}} alone", "}} alone"),
    ],
)
def test_paths_are_replaced_by_what_they_lead_to(template: str, text: str) -> None:
    assert render(template) == text


def test_whole_objects_are_compact_json() -> None:
    assert render("{{ item }}") == json.dumps(ITEM, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(render("{{sample}}"))["output_text"] == SAMPLE_TEXT


def test_tool_calls_are_reached() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Oslo"}'}}
    observation = Observation({}, {"choices": [], "output_text": "", "output_json": None, "output_tools": [call]})
    template = parse_template(
        "{{sample.output_tools[0].function.name}}{{sample.output_tools[0].function.arguments}}", "p"
    )

    assert template.render(observation) == 'look_up{"city": "Oslo"}'


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{{ }}",
        "{{item.answer",
        "{{item.answer}",
        "{{item.}}",
        "{{item..answer}}",
        "{{item.answer|upper}}",
        "{{item.answer.upper()}}",
        "{{item.a + item.b}}",
        "{{item[answer]}}",
        "{{item[1.5]}}",
        "{{item[]}}",
        "{{item['a]}}",
        "{{item.0}}",
        "{{ item answer }}",
        "{{{item.answer}}}",
        "{{% if item %}}",
        "{{ 'text' }}",
        "{{ 5 }}",
        "ok {{item.answer}} then {{",
        "{{item." + "a" * 100_000,
        "{{" * 50_000,
    ],
)
def test_what_is_no_path_is_refused(template: str) -> None:
    with pytest.raises(InvalidGrader) as fault:
        parse_template(template, "grader.input")

    assert fault.value.param == "grader.input"
    assert fault.value.code == "invalid_grader"
    assert len(fault.value.message) < 300


@pytest.mark.parametrize("namespace", ["items", "Sample", "reference", "env", "self", "__class__"])
def test_other_namespaces_are_refused_by_name(namespace: str) -> None:
    with pytest.raises(InvalidGrader, match=f"begins with '{namespace}'"):
        parse_template(f"{{{{ {namespace}.key }}}}", "p")


@pytest.mark.parametrize(
    "path",
    [
        "item.missing",
        "item.answer.more",
        "item.answer[0]",
        "item.answers[2]",
        "item.answers[-3]",
        "item.answers.text",
        "item.answers['0']",
        "item[0]",
        "item.number.real",
        "item.__class__",
        "item.answer.__class__",
        "item.answers.append",
        "item.keys",
        "item.nothing.x",
        "sample.output_audio",
        "sample.missing",
        "sample.choices[1]",
        "sample.output_tools[0]",
        "sample.output_json.missing",
    ],
)
def test_a_path_that_leads_nowhere_is_a_flag(path: str) -> None:
    with pytest.raises(GraderFault) as fault:
        render(f"{{{{ {path} }}}}")

    assert list(fault.value.score.faults) == ["invalid_variable_error"]
    assert path in fault.value.score.faults["invalid_variable_error"]


@pytest.mark.parametrize("text", ["no JSON", "[1]", "5", '"x"', "null", "", '{"a": NaN}', '{"a":', "[" * 100_000])
@pytest.mark.parametrize("path", ["sample.output_json", "sample.output_json.city"])
def test_an_answer_that_is_no_json_object_is_a_flag_where_json_is_asked_for(text: str, path: str) -> None:
    with pytest.raises(GraderFault) as fault:
        render(f"{{{{ {path} }}}}", sample=text)

    assert list(fault.value.score.faults) == ["sample_parse_error"]


def test_what_an_item_says_is_no_template() -> None:
    assert render("{{ item.answer }}", {"answer": "{{ sample.output_text }}"}) == "{{ sample.output_text }}"


def test_a_text_that_grows_without_bounds_is_a_flag() -> None:
    item = {"long": "x" * (MAX_RENDERED_CHARACTERS // 10)}
    template = parse_template("{{item.long}}" * 11, "p")

    with pytest.raises(GraderFault) as fault:
        template.render(observe_text("", item))

    assert list(fault.value.score.faults) == ["other_error"]
    assert str(MAX_RENDERED_CHARACTERS) in fault.value.score.faults["other_error"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]\w{0,8}", fullmatch=True), json_values, min_size=1), st.data())
def test_every_key_of_an_item_is_reached(item: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(item)))
    rendered = render(f"{{{{ item.{key} }}}}", item)

    if isinstance(item[key], str):
        assert rendered == item[key]
    else:
        assert json.loads(rendered) == item[key]


@given(st.text(alphabet="{}[]'\".items ample0_|"))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        template = parse_template(text, "p")
    except InvalidGrader:
        return
    with suppress(GraderFault):
        assert isinstance(template.render(observe_text("", {})), str)
