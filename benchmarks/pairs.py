"""Pairs of answers to the prompts of `chats`: a training file of preferences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.chats import make_chats, make_text

#: The other answer is so many times as long as the preferred one.
LENGTHS = (0.6, 1.3)


def make_pairs(num_rows: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows in OpenAI's format; the same for the same arguments."""
    generator = random.Random(seed)
    return [_pair(chat["messages"], generator) for chat in make_chats(num_rows, seed)]


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pair(messages: list[dict[str, Any]], generator: random.Random) -> dict[str, Any]:
    prompt, answer = messages
    num_words = len(answer["content"].split())
    other = make_text(generator, max(2, round(num_words * generator.uniform(*LENGTHS))))
    return {
        "input": {"messages": [prompt]},
        "preferred_output": [answer],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }
