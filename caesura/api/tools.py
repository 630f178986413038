"""The tools of a chat, in the form of today and in the older one (`functions`), as the engine takes them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caesura.api.explain import quote, supported
from caesura.errors import InvalidRequest
from caesura.schema.chat import CreateChatCompletion, Function, NamedFunction, NamedTool


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters' names, and the paths to the functions' names in them."""

    tools: str
    choice: str
    offered: str
    chosen: str


_TOOLS = Form("tools", "tool_choice", "tools[{}].function.name", "tool_choice.function.name")
_FUNCTIONS = Form("functions", "function_call", "functions[{}].name", "function_call.name")


def tools_of(body: CreateChatCompletion) -> dict[str, Any]:
    """`tools`, `tool_choice` and `parallel_tool_calls` of the engine's request. In the older form an answer holds one
    call at most.

    Raises InvalidRequest where the choice is not one of what is offered, or a name is offered twice.
    """
    if body.tools is not None and body.functions is not None:
        raise InvalidRequest(
            "The 'functions' parameter is the older form of 'tools': send one of the two.", param="functions"
        )
    tools = [tool.function for tool in body.tools or ()]
    functions = body.functions or []
    choice = body.tool_choice.function if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    check_tools(_TOOLS, tools, choice)
    check_tools(_FUNCTIONS, functions, body.function_call)
    choice = choice or body.function_call or "auto"
    if choice == "none":
        return {}
    return {
        "tools": [_to_tool(function) for function in tools or functions] or None,
        "tool_choice": ("function", choice.name) if isinstance(choice, NamedFunction) else choice,
        "parallel_tool_calls": not functions and body.parallel_tool_calls is not False,
    }


def check_tools(form: Form, functions: Sequence[Function], choice: NamedFunction | str | None) -> None:
    """Raises InvalidRequest where `choice` is not one of `functions`, or two of these share a name."""
    names = [function.name for function in functions]
    for index, name in enumerate(names):
        if name in names[:index]:
            path = form.offered.format(index)
            raise InvalidRequest(
                f"Invalid '{path}': there is another function '{name}' before it. Give each a name of its own.",
                param=path,
                code="invalid_value",
            )
    if choice is not None and not functions:
        raise InvalidRequest(
            f"The '{form.choice}' parameter is only allowed when '{form.tools}' are given.", param=form.choice
        )
    if isinstance(choice, NamedFunction) and choice.name not in names:
        offered = supported([f"'{name}'" for name in names])
        raise InvalidRequest(
            f"Invalid value: '{quote(choice.name)}'. Supported values are the names in '{form.tools}': {offered}.",
            param=form.chosen,
            code="invalid_value",
        )


def _to_tool(function: Function) -> dict[str, Any]:
    return {"type": "function", "function": function.model_dump(exclude_unset=True)}
