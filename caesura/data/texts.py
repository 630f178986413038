"""A row of supervised data → token ids and which of them are learned, in the older format too. No I/O.

A text of the older format goes past the chat template: what is learned of it is asked for as text again
(`/v1/completions`), or of a chat model whose template is no more than text.
"""

from __future__ import annotations

from typing import Any

from caesura.data.literal import spell, spell_out
from caesura.data.render import Example, Tokenizer, render_row
from caesura.data.rows import Row, TextRow
from caesura.errors import InvalidData


def render_example(row: Row | TextRow, tokenizer: Tokenizer, max_tokens: int) -> Example:
    """The row as at most `max_tokens` tokens. Raises InvalidData, naming the line, as `render_row`."""
    return render_row(row, tokenizer, max_tokens) if isinstance(row, Row) else _render_text(row, tokenizer, max_tokens)


def _render_text(row: TextRow, tokenizer: Tokenizer, max_tokens: int) -> Example:
    """Prompt and completion as one text, of which the completion is learned, and the token that ends it.

    A token that begins in the prompt and ends in the completion is learned.
    """
    spelled = spell([{"prompt": row.prompt, "completion": row.completion}], None, tokenizer)
    prompt, completion = spelled.messages[0]["prompt"], spelled.messages[0]["completion"]
    text = prompt + completion
    encode: Any = tokenizer
    encoding = encode(text, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"]
    masked = {
        "input_ids": encoding["input_ids"],
        "offset_mapping": offsets,
        # What a tokenizer puts before every text stands at no place of it.
        "loss_mask": [int(end > len(prompt)) for _, end in offsets],
    }
    try:
        masked = spell_out(spelled, text, masked, tokenizer)
    except InvalidData as error:
        raise InvalidData(f"Example {row.line}: {error.message}") from error
    token_ids, loss_mask = masked["input_ids"], masked["loss_mask"]
    if tokenizer.eos_token_id is not None and token_ids[-1:] != [tokenizer.eos_token_id]:
        token_ids, loss_mask = [*token_ids, tokenizer.eos_token_id], [*loss_mask, 1]
    num_truncated = max(0, len(token_ids) - max_tokens)
    return Example(row.line, token_ids[:max_tokens], loss_mask[:max_tokens], num_truncated)
