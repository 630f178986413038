"""A prompt row → the tokens that its answers continue. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caesura.data.prompts import PromptRow
from caesura.data.render import Tokenizer, encode_conversation
from caesura.errors import InvalidData

#: A prompt that leaves an answer less room than this teaches nothing: whatever comes is cut off.
MIN_ROOM = 16


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A row as the model sees it, up to where an answer begins."""

    row: PromptRow
    token_ids: list[int]
    #: Tokens that an answer may have.
    room: int
    #: What else the template was given.
    options: dict[str, Any]
    #: Nothing is ever cut from a prompt.
    num_truncated: int = 0

    @property
    def line(self) -> int:
        return self.row.line

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def teaches(self) -> bool:
        return self.room >= MIN_ROOM


def render_prompt(row: PromptRow, tokenizer: Tokenizer, max_tokens: int, effort: str = "default") -> PromptTokens:
    """The row's prompt, with what `max_tokens` of the context leave to its answer.

    Raises `InvalidData`, naming the line, where the template refuses the row.
    """
    options = _effort_options(tokenizer.get_chat_template(tools=row.tools), effort)
    try:
        token_ids = encode_conversation(row.messages, row.tools, tokenizer, **options)
    except Exception as error:  # A template is foreign code: whatever it raises, it refuses the row.
        message = f"Example {row.line} cannot be rendered by the model's chat template: {error}"
        raise InvalidData(message) from error
    return PromptTokens(row, token_ids, max_tokens - len(token_ids), options)


def _effort_options(template: str, effort: str) -> dict[str, Any]:
    """How a template is told of the effort: by the switch of gpt-oss's, or by that of Qwen 3's, where it has one."""
    if effort == "default":
        return {}
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    return {"enable_thinking": effort != "low"} if "enable_thinking" in template else {}
