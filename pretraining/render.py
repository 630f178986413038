"""From a conversation to the text the model reads, in pieces that say what is trained.

The same text as chat_template.jinja makes, written a second time because the template is slow over a
million conversations and because two writings check each other (tokenizer.py compares them).
"""

import json
from typing import NamedTuple

from pretraining.corpus import Conversation
from pretraining.tools import Message

START, END = "<|im_start|>", "<|im_end|>"


class Piece(NamedTuple):
    text: str
    trained: bool


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _call(call: Message) -> str:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>{{"name": "{function["name"]}", "arguments": {arguments}}}</tool_call>'


def render(conversation: Conversation) -> list[Piece]:
    messages, tools = conversation
    pieces: list[Piece] = []
    begins_with_system = messages[0]["role"] in ("system", "developer")
    system = _text(messages[0]) if begins_with_system else ""
    if tools:
        listed = "".join("\n" + json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        system = f"{system}\nTools:{listed}" if system else f"Tools:{listed}"
    if system:
        pieces.append(Piece(f"{START}system\n{system}{END}\n", False))
    for message in messages[1:] if begins_with_system else messages:
        if message["role"] == "assistant":
            calls = "".join(_call(call) for call in message.get("tool_calls") or [])
            pieces.append(Piece(f"{START}assistant\n", False))
            pieces.append(Piece(_text(message) + calls + END, True))
            pieces.append(Piece("\n", False))
        else:
            role = "system" if message["role"] == "developer" else message["role"]
            pieces.append(Piece(f"{START}{role}\n{_text(message)}{END}\n", False))
    return pieces
