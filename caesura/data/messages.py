"""The messages and tools of a row, checked and in their present form; the same for every training method. No I/O.

The deprecated `functions`, `function_call` and the role `function` are read as their successors `tools`,
`tool_calls` and `tool`. Not covered: images, audio, and whether a text holds the special tokens of a model (no
model is known here).
"""

from __future__ import annotations

from typing import Any

from caesura.data.lines import Place, is_dict, is_list, refuse_extra_keys, shown, without_nulls

#: From each role, the keys that its messages may have.
MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "developer": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "weight", "tool_calls", "function_call"),
    "tool": ("role", "content", "name", "tool_call_id"),
    "function": ("role", "content", "name"),
}
ROLES = tuple(MESSAGE_KEYS)
_IMAGE_PARTS = ("image_url", "input_image", "image")


def read_messages(value: object, key: str, place: Place, roles: tuple[str, ...] = ROLES) -> list[dict[str, Any]]:
    """The messages of a list that stands under `key` of `place`. `roles` are those that a remedy names."""
    if not is_list(value) or not value:
        place.fail(
            f" has no messages: '{key}' must be a list of at least one",
            f'Write "{key}": [{{"role": "...", "content": "..."}}].',
            key,
        )
    return [
        _message(message, place.within(f"message {number}", f"{key}[{number - 1}]"), roles)
        for number, message in enumerate(value, start=1)
    ]


def _message(value: object, place: Place, roles: tuple[str, ...]) -> dict[str, Any]:
    if not is_dict(value):
        place.fail(" is not a dictionary", 'Write each message as {"role": "...", "content": "..."}.')
    message = without_nulls(value)
    role = _role(message, place, roles)
    refuse_extra_keys(message, MESSAGE_KEYS[role], place, f"a message of the role '{role}'")
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str):
            place.fail(f" has a '{key}' that is not a string", f"Write '{key}' as a string.", key)
    _check_content(message, place)
    _check_weight(message, place)
    if "tool_calls" in message:
        _check_tool_calls(message["tool_calls"], place)
    return _modernized(message, place)


def _role(message: dict[str, Any], place: Place, roles: tuple[str, ...]) -> str:
    role = message.get("role")
    if isinstance(role, str) and role in MESSAGE_KEYS:
        return role
    legal = ", ".join(f"'{role}'" for role in roles)
    if "role" not in message:
        place.fail(" Discriminator 'role' is missing in value", f"Give each message one of: {legal}.", "role")
    return place.fail(f" has the unknown role {shown(role)}", f"The role must be one of: {legal}.", "role")


def _check_content(message: dict[str, Any], place: Place) -> None:
    if "content" not in message:
        if message["role"] == "assistant" and ("tool_calls" in message or "function_call" in message):
            return
        place.fail(
            " has no content",
            "Give it a 'content'; only an assistant message with 'tool_calls' may go without.",
            "content",
        )
    content = message["content"]
    if isinstance(content, str):
        return
    if not is_list(content) or not content:
        place.fail(
            f" has a content that is neither a string nor a list of parts: {shown(content)}",
            "Write 'content' as a string.",
            "content",
        )
    for index, part in enumerate(content):
        _check_part(part, index, place)


def _check_part(part: object, index: int, place: Place) -> None:
    key = f"content[{index}]"
    remedy = 'Write \'content\' as a string, or its parts as {"type": "text", "text": "..."}.'
    kind = part.get("type") if is_dict(part) else None
    if kind in _IMAGE_PARTS:
        place.fail(f" has a part of type {shown(kind)}: images are not supported", "Remove the image.", key)
    if kind != "text":
        place.fail(f" has a part of type {shown(kind)}: only text is supported", remedy, key)
    if not is_dict(part) or not isinstance(part.get("text"), str):
        place.fail(" has a text part without text", remedy, key)


def _check_weight(message: dict[str, Any], place: Place) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        place.fail(
            f" has the weight {shown(weight)}",
            "The weight must be 0 (not learned) or 1 (learned).",
            "weight",
        )


def _check_tool_calls(calls: object, place: Place) -> None:
    if not is_list(calls) or not calls:
        place.fail(
            " has no tool calls: 'tool_calls' must be a list of at least one", "Remove 'tool_calls'.", "tool_calls"
        )
    for index, call in enumerate(calls):
        key = f"tool_calls[{index}]"
        if not is_dict(call) or call.get("type") != "function":
            place.fail(
                f" has a tool call {index + 1} that is not of type 'function'",
                'Write each tool call as {"id": "...", "type": "function", "function": {...}}.',
                key,
            )
        if not isinstance(call.get("id") or "", str):
            place.fail(f" has a tool call {index + 1} whose id is not a string", "Write it as a string.", key)
        _check_function(call.get("function"), place, f"tool call {index + 1}", f"{key}.function")


def _check_function(function: object, place: Place, name: str, key: str) -> None:
    remedy = 'Write "function": {"name": "...", "arguments": "{\\"x\\": 1}"}; the arguments are JSON as a string.'
    if not is_dict(function):
        place.fail(f" has a {name} without a function", remedy, key)
    for part in ("name", "arguments"):
        if not isinstance(function.get(part), str):
            place.fail(f" has a {name} whose function's {part} is not a string", remedy, f"{key}.{part}")


def _modernized(message: dict[str, Any], place: Place) -> dict[str, Any]:
    """The message with `function_call` and the role `function` in their present form."""
    if message["role"] == "function":
        return message | {"role": "tool"}
    if "function_call" not in message:
        return message
    if "tool_calls" in message:
        place.fail(" has both 'tool_calls' and 'function_call'", "Remove 'function_call'.", "function_call")
    function = message["function_call"]
    _check_function(function, place, "function_call", "function_call")
    rest = {key: value for key, value in message.items() if key != "function_call"}
    return rest | {"tool_calls": [{"type": "function", "function": function}]}


def read_tools(row: dict[str, Any], place: Place) -> list[dict[str, Any]] | None:
    """The tools of a row, from `tools` or the older `functions`."""
    if "tools" in row and "functions" in row:
        place.fail(" has both 'tools' and 'functions'", "Remove 'functions'.", "functions")
    key = "functions" if "functions" in row else "tools"
    listed = row.get(key, [])
    if not is_list(listed):
        place.fail(f" has '{key}' that are not a list", f"Write '{key}' as a list.", key)
    tools = [{"type": "function", "function": tool} for tool in listed] if key == "functions" else listed
    for index, tool in enumerate(tools):
        _check_tool(tool, index, f"{key}[{index}]", place)
    return tools or None


def _check_tool(tool: object, index: int, key: str, place: Place) -> None:
    remedy = 'Write each tool as {"type": "function", "function": {"name": "...", "parameters": {...}}}.'
    if not is_dict(tool) or tool.get("type") != "function":
        place.fail(f" has a tool {index + 1} that is not of type 'function'", remedy, key)
    function = tool.get("function")
    if not is_dict(function) or not isinstance(function.get("name"), str):
        place.fail(f" has a tool {index + 1} whose function has no name", remedy, key)
    if not isinstance(function.get("description") or "", str):
        place.fail(f" has a tool {index + 1} whose description is not a string", remedy, key)
    parameters: object = function.get("parameters") or {}
    if not is_dict(parameters):
        place.fail(f" has a tool {index + 1} whose parameters are not a JSON schema", remedy, key)
    if fault := schema_fault(parameters):
        place.fail(
            f" has a tool {index + 1} whose parameters are not the JSON schema of an object: {fault}",
            'Write "parameters": {"type": "object", "properties": {"name": {...}}, "required": ["name"]}.',
            f"{key}.function.parameters",
        )


def schema_fault(parameters: dict[str, Any]) -> str | None:
    """What is wrong with the outermost part of a function's parameters; None if nothing is."""
    properties: object = parameters.get("properties", {})
    required: object = parameters.get("required", [])
    if parameters.get("type", "object") != "object":
        return f"its 'type' is {shown(parameters['type'])}, not \"object\""
    if not is_dict(properties) or not all(isinstance(schema, (dict, bool)) for schema in properties.values()):
        return "its 'properties' are not an object of schemas"
    if not is_list(required) or not all(isinstance(name, str) for name in required):
        return "'required' is not a list of names"
    return None


def read_parallel_tool_calls(row: dict[str, Any], place: Place) -> bool:
    """Whether the model may call several tools at once, as the row says; it may where the row says nothing."""
    value = row.get("parallel_tool_calls", True)
    if not isinstance(value, bool):
        key = "parallel_tool_calls"
        place.fail(f" has a '{key}' that is not a boolean: {shown(value)}", "Write true or false.", key)
    return value
