from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caesura.inference.tools import (
    FORMATS,
    HERMES,
    LLAMA,
    MISTRAL,
    CallArguments,
    CallBegun,
    CallEnded,
    Event,
    Said,
    ToolFormat,
    ToolScanner,
    find_format,
)
from caesura.settings import EMBEDDED_BASE_PATH

NAMES = ("f", "get_weather", "größe")
#: What each format's public templates say of calls; the rest of them is of no interest here.
QWEN_3 = r"""{%- if tools %}{{- "<tools>" }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}{%- endif %}"""
HERMES_2 = """{{ '{"properties": {"arguments": {"title": "Arguments", "type": "object"}, …}}' }}{% for tool in tools %}
    {{ '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>' }}"""
QWEN_3_CODER = """{% for tool in tools %}<tool_call>\n<function=example>\n<parameter=p>\n1\n</parameter>\n</function>
    </tool_call>{% for name, value in tool_call.arguments | items %}"""
GLM_4_5 = """{% for tool in tools %}<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n</tool_call>"""
MISTRAL_V3 = """{%- for tool in tools %}{{- "[AVAILABLE_TOOLS] [" }}{%- endfor %}{{- "[TOOL_CALLS] [" }}
    {%- set out = tool_call.function|tojson %}{{- ', "id": "' + tool_call.id[-9:] + '"}' }}"""
MISTRAL_V13 = """{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools|tojson }}{%- endif %}
    {{- '[TOOL_CALLS]' + tool_call.function.name + '[ARGS]' + arguments }}"""
LLAMA_3_1 = r"""{{- "<|start_header_id|>system<|end_header_id|>" }}
    {%- if tools is not none %}{{- "Environment: ipython\n" }}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}
    {{- "<|python_tag|>" + tool_call.name + ".call(" }}{%- endif %}"""
LLAMA_3_2 = LLAMA_3_1.replace("<|python_tag|>", "")
LLAMA_3 = "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>' }}"
LLAMA_4 = LLAMA_3_1.replace("start_header_id", "header_start")


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ((EMBEDDED_BASE_PATH / "chat_template.jinja").read_text(), HERMES),
        (QWEN_3, HERMES),
        (HERMES_2, HERMES),
        (QWEN_3_CODER, None),
        (GLM_4_5, None),
        (MISTRAL_V3, MISTRAL),
        (MISTRAL_V13, None),
        (LLAMA_3_1, LLAMA),
        (LLAMA_3_2, LLAMA),
        (LLAMA_3, None),
        (LLAMA_4, None),
        (QWEN_3.replace("tools", "things"), None),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
        (None, None),
    ],
)
def test_a_format_is_known_by_its_chat_template(template: str | None, format: ToolFormat | None) -> None:
    assert find_format(template) == format


def scan(format: ToolFormat, pieces: list[str] | str, *, in_call: bool = False) -> list[Event]:
    """The events of an answer that comes in these pieces, or character by character: each as long as it can be."""
    scanner = ToolScanner(format, NAMES, in_call=in_call)
    told = [event for piece in pieces for event in scanner.add(piece)] + scanner.finish()
    events: list[Event] = []
    for event in told:
        match events[-1:], event:
            case [Said(before)], Said(text):
                events[-1] = Said(before + text)
            case [CallArguments(call, before)], CallArguments(_, text):
                events[-1] = CallArguments(call, before + text)
            case _:
                events.append(event)
    return events


def call(index: int, name: str, arguments: str) -> list[Event]:
    return [CallBegun(index, name), CallArguments(index, arguments), CallEnded(index)]


def write_call(format: ToolFormat, name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{format.arguments_key}": {arguments}}}'


def write_block(format: ToolFormat, calls: list[str]) -> str:
    """Calls as a model writes them, each in the format's own way."""
    if format is HERMES:
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    if format is MISTRAL:
        return f"[TOOL_CALLS] [{', '.join(calls)}]"
    return "<|python_tag|>" + "; ".join(calls)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aé😀\"\\{}[]<>,: \n;/'|_"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"}', max_size=3), inner, max_size=3),
    max_leaves=6,
)


def write_json(value: Any, is_ascii: bool, indent: int | None) -> str:
    return json.dumps(value, ensure_ascii=is_ascii, indent=indent)


objects = st.builds(
    write_json,
    st.dictionaries(st.sampled_from(["a", "</tool_call>", "<tool_call>", "[TOOL_CALLS]", "}]"]), values, max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    format=st.sampled_from(FORMATS),
    calls=st.lists(st.tuples(st.sampled_from(NAMES), objects), min_size=1, max_size=3),
    text=st.sampled_from(["", "I look.", "1 < 2 and\n [3]", "a <tool_ <|python"]),
    gap=st.sampled_from(["", "\n", " \n\n"]),
)
def test_calls_are_told_as_they_were_written(
    format: ToolFormat, calls: list[tuple[str, str]], text: str, gap: str
) -> None:
    written = text + gap + write_block(format, [write_call(format, *one) for one in calls])

    told = [event for index, one in enumerate(calls) for event in call(index, *one)]
    assert scan(format, written) == ([Said(text)] if text else []) + told
    for event in told:
        if isinstance(event, CallArguments):
            json.loads(event.text)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


#: Fragments that put together are calls, nearly calls, and text.
fragments = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<tool",
            "[TOOL_CALLS]",
            "[",
            "]",
            "<|python_tag|>",
            ";",
            ", ",
            " \n",
            "}",
            "{",
        ),
        *('{"name": "f", "arguments": {"a": "}<é\\""}}', '{"name":"f","parameters":{}}', '{"name": "unknown"', '"f"'),
        *(
            '{"name": "f", "arguments": ',
            '{"a": [1, {"b": null}]}',
            '{"arguments": {"x": 1}, "name": "f"}',
            "Hello",
            "😀",
        ),
    ]
)
answers = st.lists(fragments, max_size=12).map("".join)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(format=st.sampled_from(FORMATS), answer=answers, places=st.lists(st.integers(0, 500)), in_call=st.booleans())
def test_the_same_is_told_however_an_answer_is_cut(
    format: ToolFormat, answer: str, places: list[int], in_call: bool
) -> None:
    assert scan(format, cut(answer, places), in_call=in_call) == scan(format, answer, in_call=in_call)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(format=st.sampled_from(FORMATS), answer=answers)
def test_nothing_that_is_no_call_is_lost(format: ToolFormat, answer: str) -> None:
    events = scan(format, answer)

    texts = [event.text for event in events if isinstance(event, Said | CallArguments)]
    rest = answer
    for text in texts:
        before, found, rest = rest.partition(text)
        assert found or text == "{}", "it is told in its order"
        assert is_of_calls(format, before)
    assert is_of_calls(format, rest)
    begun = [event.call for event in events if isinstance(event, CallBegun)]
    assert begun == list(range(len(begun)))
    assert begun or "".join(texts) == answer


def is_of_calls(format: ToolFormat, dropped: str) -> bool:
    """Whether this is what is left of calls without their arguments: markers, keys, names, and what is between."""
    words = (format.begin, format.end, '"name"', '"f"', '"arguments"', '"parameters"')
    for word in filter(None, words):
        dropped = dropped.replace(word, " ")
    dropped = dropped.strip(' \n{}:,"' + format.opening + format.separator + ("]" if format.end == "]" else ""))
    return any(word.startswith(dropped) for word in words)


BROKEN = [
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {"a": 1}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "unknown"}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"a": [1}, "name": "f"}</tool_call>'),
    (HERMES, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"),
    (HERMES, '<tool_call>{"name" "f"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f" "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>'),
    (HERMES, '<tool_call>{"name": 5}</tool_call>'),
    (HERMES, '<tool_call>{"name": "\\x"}</tool_call>'),
    (HERMES, "<tool_call></tool_call>"),
    (HERMES, "<tool_call>\nget_weather\n</tool_call>"),
    (HERMES, 'One.\n\n<tool_call>\n{"name": "unknown"}\n</tool_call>\n'),
    (HERMES, '{"name": "f", "arguments": {}}'),
    (HERMES, "<tool_call>"),
    (HERMES, "Is 1 <tool_"),
    (HERMES, '<tool_call>{"name": "get_wea'),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "na'),
    (HERMES, "Text at whose end are spaces. \n"),
    (HERMES, ""),
    (MISTRAL, '[TOOL_CALLS]{"name": "f", "arguments": {}}'),
    (MISTRAL, "[TOOL_CALLS][]"),
    (MISTRAL, "[TOOL_CALLS] ["),
    (MISTRAL, '[TOOL_CALLS][{"name": "unknown", "arguments": {}}]'),
    (LLAMA, '{"city": "Paris", "name": "unknown"}'),
    (LLAMA, '{"city": "Paris", "all": [{"a": "}"}, -1.5e3]} is my answer'),
    (LLAMA, '<|python_tag|>brave_search.call(query="x")'),
    (LLAMA, 'It is {"name": "f", "parameters": {}}'),
    (LLAMA, ' \n{"name": "f", "parameters": []}'),
    (LLAMA, "{{"),
]


@pytest.mark.parametrize(("format", "answer"), BROKEN)
def test_what_is_no_call_is_told_as_text(format: ToolFormat, answer: str) -> None:
    assert scan(format, answer) == ([Said(answer)] if answer else [])


A = '{"a": "x"}'
F = call(0, "f", A)
CUT = [CallBegun(0, "f"), CallArguments(0, '{"a": "x')]


@pytest.mark.parametrize(
    ("format", "answer", "events"),
    [
        # Other keys, and the other order.
        (HERMES, f'<tool_call>{{"arguments": {A}, "name": "f"}}</tool_call>', F),
        (HERMES, f'<tool_call>{{"id": [1, "}}"], "x": "\\"", "name": "f", "y": 1, "arguments": {A}}}</tool_call>', F),
        (MISTRAL, f'[TOOL_CALLS][{{"name": "f", "arguments": {A}, "id": "abcdef123"}}]', F),
        (LLAMA, f'{{"type": "function", "name": "f", "parameters": {A}}}', F),
        (LLAMA, f'{{"name": "f", "arguments": {A}}}', F),
        # Without arguments.
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
        # Escapes.
        (HERMES, '<tool_call>{"n\\u0061me": "gr\\u00f6\\u00dfe", "arguments": {}}</tool_call>', call(0, "größe", "{}")),
        # Cut off: within the arguments, before them, and after them.
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x', CUT),
        (LLAMA, '{"name": "f", "parameters": {"a": "x', CUT),
        (HERMES, '<tool_call>{"name": "f", "argu', [CallBegun(0, "f")]),
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}', F[:2]),
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}}\n</tool', F),
        (MISTRAL, f'[TOOL_CALLS][{{"name": "f", "arguments": {A}}}, ', F),
        (MISTRAL, f'[TOOL_CALLS][{{"name": "f", "arguments": {A}}}, {{"na', [*F, Said(', {"na')]),
        # Broken after the name was told: the call ends, and the rest is text, but for the end marker.
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}</tool_call>', F),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>!', [*call(0, "f", '{"a": 1'), Said("!")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1}}!', [*call(0, "f", '{"a": [1'), Said("}}!")]),
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}} and so on', [*F, Said(" and so on")]),
        (LLAMA, f'{{"name": "f", "parameters": {A}}}; no', [*F, Said("; no")]),
        # Text after a call, and a call after text that was none.
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}}</tool_call>\n', F),
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}}</tool_call>\nBye ', [*F, Said("\nBye ")]),
        (
            HERMES,
            f'<tool_call>{{"name": "no"}}</tool_call> <tool_call>{{"name": "f", "arguments": {A}}}</tool_call>',
            [Said('<tool_call>{"name": "no"}</tool_call>'), *F],
        ),
        (HERMES, f'<tool_call><tool_call>{{"name": "f", "arguments": {A}}}</tool_call>', [Said("<tool_call>"), *F]),
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {A}}}' * 2, [*F, *call(1, "f", A)]),
        (
            MISTRAL,
            f'[TOOL_CALLS][{{"name": "f", "arguments": {A}}}, {{"name": "no"}}]',
            [*F, Said(', {"name": "no"}]')],
        ),
        (LLAMA, f'\n{{"name": "f", "parameters": {A}}}', F),
        (LLAMA, f'Well.\n<|python_tag|> {{"name": "f", "parameters": {A}}}', [Said("Well."), *F]),
    ],
)
def test_calls_that_are_unlike_the_usual(format: ToolFormat, answer: str, events: list[Event]) -> None:
    assert scan(format, answer) == events


@pytest.mark.parametrize("format", FORMATS)
def test_the_marker_may_be_before_the_text(format: ToolFormat) -> None:
    block = write_block(format, [write_call(format, "f", A)])

    assert scan(format, block.removeprefix(format.begin), in_call=True) == F
    assert scan(format, "Not a call", in_call=True) == [Said("Not a call")]


def test_an_answer_that_must_call_begins_with_the_marker_if_the_format_needs_it() -> None:
    assert [format.prefix for format in FORMATS] == ["<tool_call>", "[TOOL_CALLS]", ""]


def test_text_is_told_as_soon_as_no_marker_can_begin_in_it() -> None:
    scanner = ToolScanner(HERMES, NAMES)

    assert scanner.add("Hi") == [Said("Hi")]
    assert scanner.add(" <tool_") == []
    assert scanner.add("x ") == [Said(" <tool_x")]
    assert scanner.add("y\n") == [Said(" y")]
    assert scanner.finish() == [Said("\n")]


def test_arguments_are_told_as_soon_as_the_function_is_known() -> None:
    scanner = ToolScanner(HERMES, NAMES)

    assert scanner.add('<tool_call>{"name": "f", "arguments": ') == []
    assert scanner.add('{"a"') == [CallBegun(0, "f"), CallArguments(0, '{"a"')]
    assert scanner.add(": 1") == [CallArguments(0, ": 1")]
    assert scanner.add("}") == [CallArguments(0, "}")]
    assert scanner.add("}") == [CallEnded(0)]
    assert scanner.add("</tool_call>") == scanner.finish() == []


def states(format: ToolFormat, pieces: list[str], **options: Any) -> list[tuple[bool, str]]:
    scanner = ToolScanner(format, NAMES, **options)
    told = [(scanner.is_in_call, scanner.unparsed)]
    for piece in pieces:
        scanner.add(piece)
        told.append((scanner.is_in_call, scanner.unparsed))
    return told


def test_a_block_says_what_of_it_came_from_its_marker_to_its_end() -> None:
    pieces = ["I ", "<tool_call>", '\n{"name', '": "f"}', "</tool_call>", "\n<tool_call>{", "</tool_call>"]

    assert states(HERMES, pieces) == [
        *((False, ""), (False, ""), (True, ""), (True, '\n{"name'), (True, '\n{"name": "f"}')),
        *((False, ""), (True, "{"), (False, "")),
    ]
    assert states(HERMES, ["{"], in_call=True) == [(True, ""), (True, "{")]
    call = '[{"name": "f"}'
    assert states(MISTRAL, ["[TOOL_CALLS]" + call, ",", "]"])[1:] == [(True, call), (True, call + ","), (False, "")]


def test_an_object_without_a_marker_is_a_call_once_it_names_a_function() -> None:
    assert states(LLAMA, ['{"name": "', 'f"', "}", "; "])[1:] == [
        *((False, '{"name": "'), (True, '{"name": "f"'), (True, '{"name": "f"}'), (True, '{"name": "f"}; ')),
    ]
    broken = '{"name": "f", "parameters": {"a": 1;'
    assert states(LLAMA, [broken])[1:] == [(True, broken)]
    assert states(LLAMA, ["<|python_tag|>"])[1:] == [(True, "")]
    assert states(LLAMA, ['{"city": "', 'f"', "}"])[-1] == (False, "")
