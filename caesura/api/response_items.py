"""A response's input: its items as they are stored and listed, and the messages that the engine is asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caesura.api.explain import quote
from caesura.errors import InvalidRequest
from caesura.ids import new_id
from caesura.schema.responses import CallItem, CallOutput, Item, Message, Part, RefusalPart, TextPart

Items = list[dict[str, Any]]


def to_items(given: str | Sequence[Item]) -> Items:
    """The input with every key filled in, without reasoning: no model here reads another's.

    Raises InvalidRequest for an id that two items share: a list in pages could not tell them apart.
    """
    if isinstance(given, str):
        given = [Message(role="user", content=given)]
    items = [_to_item(item) for item in given if isinstance(item, Message | CallItem | CallOutput)]
    seen: set[str] = set()
    for item in items:
        if item["id"] in seen:
            raise InvalidRequest(
                f"Duplicate item found with id {quote(item['id'])}. Remove duplicate items from your input and try "
                "again.",
                param="input",
            )
        seen.add(item["id"])
    return items


def _to_item(item: Message | CallItem | CallOutput) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": item.id or new_id("msg_" if isinstance(item, Message) else "fc_"),
        "type": item.type,
        "status": item.status or "completed",
    }
    match item:
        case Message():
            kind = "output_text" if item.role == "assistant" else "input_text"
            parts = [TextPart(type=kind, text=item.content)] if isinstance(item.content, str) else item.content
            return values | {"role": item.role, "content": [_to_part(part) for part in parts]}
        case CallItem():
            return values | {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case CallOutput():
            output = item.output if isinstance(item.output, str) else [_to_part(part) for part in item.output]
            return values | {"call_id": item.call_id, "output": output}


def _to_part(part: Part) -> dict[str, Any]:
    if isinstance(part, RefusalPart):
        return {"type": part.type, "refusal": part.refusal}
    beside: dict[str, Any] = {"annotations": [], "logprobs": []} if part.type == "output_text" else {}
    return {"type": part.type, "text": part.text} | beside


def to_messages(instructions: str | None, items: Iterable[Mapping[str, Any]]) -> Items:
    """The conversation in Chat Completions' form. What an assistant says and the calls right behind it are one message.

    Raises InvalidRequest for the output of a call that nobody made.
    """
    messages: Items = [] if instructions is None else [{"role": "system", "content": instructions}]
    called: set[str] = set()
    for item in items:
        match item["type"]:
            case "function_call":
                called.add(item["call_id"])
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant"})
                messages[-1].setdefault("tool_calls", []).append(_to_tool_call(item))
            case "function_call_output":
                call_id = item["call_id"]
                if call_id not in called:
                    raise InvalidRequest(
                        f"No tool call found for function call output with call_id {quote(call_id)}. Put the "
                        "'function_call' item before it, or name the response that called by 'previous_response_id'.",
                        param="input",
                    )
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _to_text(item["output"])})
            case _:
                messages.append({"role": item["role"], "content": _to_text(item["content"])})
    return messages


def _to_tool_call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _to_text(content: str | Items) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)
