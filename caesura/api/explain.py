"""OpenAI's words for what pydantic finds wrong with a request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caesura.errors import InvalidRequest
from caesura.schema.common import NUMBER_TAG

#: pydantic's names of types → JSON's, with their article.
_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "string": "a string",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "model": "an object",
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
}
#: (pydantic's problem, kind of value) → (its key of the limit, what is wrong, what is expected, code).
_LENGTHS = {
    ("string_too_long", "string"): ("max_length", "string too long", "maximum length", "string_above_max_length"),
    ("string_too_short", "string"): ("min_length", "string too short", "minimum length", "string_below_min_length"),
    ("too_long", "array"): ("max_length", "array too long", "maximum length", "array_above_max_length"),
    ("too_short", "array"): ("min_length", "array too short", "minimum length", "empty_array"),
    ("too_long", "object"): ("max_length", "too many properties", "at most", "object_above_max_properties"),
}


def explain(problems: Sequence[Any]) -> InvalidRequest:
    """The fault for the first of pydantic's problems: one remedy at a time."""
    problem = problems[0]
    if problem["type"] == "json_invalid":
        return InvalidRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            f"library correctly. The body must be JSON: {problem['ctx']['error']}.)"
        )
    path = _path(problem["loc"])
    if not path:
        return InvalidRequest("The body of your request must be a JSON object.", code="invalid_type")
    message, code = _explain(problem["type"], path, problem["input"], problem.get("ctx", {}), problem["msg"])
    return InvalidRequest(message, param=path, code=code)


def _explain(kind: str, path: str, given: Any, context: dict[str, Any], otherwise: str) -> tuple[str, str]:
    """Message and code of one problem."""
    if kind == "missing":
        return f"Missing required parameter: '{path}'.", "missing_required_parameter"
    if kind == "extra_forbidden":
        return f"Unknown parameter: '{path}'.", "unknown_parameter"
    if kind == "literal_error":
        return f"Invalid value: {_show(given)}. Supported values are: {context['expected']}.", "invalid_value"
    if kind in _BOUNDS:
        return _explain_bound(kind, path, given, context)
    received = _RECEIVED.get(type(given).__name__, "another type")
    sized = (kind, received.partition(" ")[2])
    if sized in _LENGTHS:
        return _explain_length(sized, path, len(given), context)
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected is not None:
        return f"Invalid type for '{path}': expected {expected}, but got {received} instead.", "invalid_type"
    return f"Invalid value for '{path}': {otherwise}.", "invalid_value"


def _explain_bound(kind: str, path: str, given: Any, context: dict[str, Any]) -> tuple[str, str]:
    key, words, sign, code = _BOUNDS[kind]
    number = "decimal" if isinstance(given, float) else "integer"
    expected = f"Expected a value {sign} {context[key]}, but got {given} instead."
    return f"Invalid '{path}': {number} {words} value. {expected}", f"{number}_{code}"


def _explain_length(kind: tuple[str, str], path: str, length: int, context: dict[str, Any]) -> tuple[str, str]:
    key, wrong, expected, code = _LENGTHS[kind]
    limit = context[key]
    if kind[1] == "object":
        what = f"Expected an object with {expected} {limit} properties, but got an object with {length} properties"
    else:
        article = "an" if kind[1] == "array" else "a"
        what = f"Expected {article} {kind[1]} with {expected} {limit}, but got {article} {kind[1]} with length {length}"
    return f"Invalid '{path}': {wrong}. {what} instead.", code


def _path(location: Sequence[str | int]) -> str:
    """`("body", "messages", 0, "content")` → `messages[0].content`."""
    path = ""
    for part in location[1:]:
        if part in (NUMBER_TAG, "[key]"):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else str(value)
