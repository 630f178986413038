"""OpenAI's words for what pydantic finds wrong with a request. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from caesura.errors import InvalidRequest
from caesura.schema.common import TAGS

#: pydantic's problem → the JSON type that was expected, with its article.
_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_RECEIVED = {
    "NoneType": "null",
    "str": "a string",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a decimal",
    "list": "an array",
    "dict": "an object",
}
#: pydantic's problem → (its key of the limit, words, sign, the code's ending).
_BOUNDS = {
    "greater_than_equal": ("ge", "below minimum", ">=", "below_min_value"),
    "greater_than": ("gt", "below minimum", ">", "below_min_value"),
    "less_than_equal": ("le", "above maximum", "<=", "above_max_value"),
    "less_than": ("lt", "above maximum", "<", "above_max_value"),
}
#: (pydantic's problem, kind of value) → (its key of the limit, what is wrong, what is expected, code).
_LENGTHS = {
    ("string_too_long", "string"): ("max_length", "string too long", "maximum length", "string_above_max_length"),
    ("string_too_short", "string"): ("min_length", "string too short", "minimum length", "string_below_min_length"),
    # So pydantic calls it where the string has been checked otherwise before.
    ("too_long", "string"): ("max_length", "string too long", "maximum length", "string_above_max_length"),
    ("too_short", "string"): ("min_length", "string too short", "minimum length", "string_below_min_length"),
    ("too_long", "array"): ("max_length", "array too long", "maximum length", "array_above_max_length"),
    ("too_short", "array"): ("min_length", "array too short", "minimum length", "empty_array"),
    ("too_long", "object"): ("max_length", "too many properties", "at most", "object_above_max_properties"),
    ("too_short", "object"): ("min_length", "too few properties", "at least", "object_below_min_properties"),
    ("string_too_long", "property name"): (
        *("max_length", "property name too long", "maximum length"),
        "property_name_above_max_length",
    ),
}
_JSON = {"True": "true", "False": "false"}
#: pydantic marks so what is wrong with a key and not with its value.
_KEY = "[key]"
#: What a message quotes of a request is cut to this many characters.
MAX_QUOTED = 200


def explain(problems: Sequence[Any]) -> InvalidRequest:
    """The fault for the first of pydantic's problems: one remedy at a time."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return InvalidRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            f"library correctly. The body must be JSON: {problem['ctx']['error']}.)"
        )
    location, given = problem["loc"], problem["input"]
    if len(location) == 1:
        return InvalidRequest(
            "The body of your request must be a JSON object, sent with 'Content-Type: application/json'.",
            code="invalid_type",
        )
    is_key = location[-1] == _KEY and location[-2] == given
    path = _path(location[:-1] if is_key else location)
    received = "a property name" if is_key else _RECEIVED.get(type(given).__name__, "another type")
    message, code = _explain(problem["type"], path, given, received, problem.get("ctx", {}), problem["msg"])
    return InvalidRequest(message, param=path, code=code)


def supported(values: Sequence[str]) -> str:
    """`'a', 'b', and 'c'`."""
    *others, last = values
    if not others:
        return last
    return f"{', '.join(others)}{',' if len(others) > 1 else ''} and {last}"


def quote(text: str) -> str:
    """The text, or as much of it as a message should hold."""
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…"


def _explain(
    kind: str, path: str, given: Any, received: str, context: dict[str, Any], otherwise: str
) -> tuple[str, str]:
    """Message and code of one problem."""
    if kind == "missing":
        return f"Missing required parameter: '{path}'.", "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{path}'.", "unknown_parameter"
    if kind in ("literal_error", "enum"):
        return _explain_choice(path, given, received, context["expected"])
    if kind in _BOUNDS:
        return _explain_bound(kind, path, given, context)
    sized = (kind, received.partition(" ")[2])
    if sized in _LENGTHS:
        return _explain_length(sized, received, path, len(given), context)
    if kind in _EXPECTED:
        return f"Invalid type for '{path}': expected {_EXPECTED[kind]}, but got {received} instead.", "invalid_type"
    if kind == "string_unicode":
        return f"Invalid value for '{path}': the string is not valid Unicode.", "invalid_value"
    return f"Invalid value for '{path}': {otherwise}.", "invalid_value"


def _explain_choice(path: str, given: Any, received: str, expected: str) -> tuple[str, str]:
    # pydantic writes: 'a', 'b' or 'c'
    values = [_JSON.get(value, value) for part in expected.split(" or ") for value in part.split(", ")]
    if expected.startswith("'") and not isinstance(given, str):
        return (
            f"Invalid type for '{path}': expected one of {supported(values)}, but got {received} instead.",
            "invalid_type",
        )
    shown = f"'{quote(given)}'" if isinstance(given, str) else quote(json.dumps(given))
    return f"Invalid value: {shown}. Supported values are: {supported(values)}.", "invalid_value"


def _explain_bound(kind: str, path: str, given: Any, context: dict[str, Any]) -> tuple[str, str]:
    key, words, sign, code = _BOUNDS[kind]
    limit = context[key]
    number, limit = ("decimal", f"{limit:g}") if isinstance(limit, float) else ("integer", limit)
    expected = f"Expected a value {sign} {limit}, but got {quote(str(given))} instead."
    return f"Invalid '{path}': {number} {words} value. {expected}", f"{number}_{code}"


def _explain_length(
    kind: tuple[str, str], received: str, path: str, length: int, context: dict[str, Any]
) -> tuple[str, str]:
    key, wrong, expected, code = _LENGTHS[kind]
    if kind[1] == "object":
        limit = f"{expected} {context[key]} {'property' if context[key] == 1 else 'properties'}"
        what = f"Expected an object with {limit}, but got an object with {length} properties instead."
    else:
        what = f"Expected {received} with {expected} {context[key]}, but got {received} with length {length} instead."
    return f"Invalid '{path}': {wrong}. {what}", code


def _path(location: Sequence[str | int]) -> str:
    """`("body", "messages", 0, "content")` → `messages[0].content`."""
    path = ""
    for part in location[1:]:
        if part not in TAGS:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return quote(path)
