"""A training file of chats whose lengths spread as those of real ones do: a log-normal, long tail to the right."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

#: Tokens of a row with its template: half are shorter than this, a tenth longer than three times this.
MEDIAN_TOKENS = 126
SIGMA = 0.8
MIN_TOKENS, MAX_TOKENS = 24, 980
#: What the chat template adds to a question and its answer.
TEMPLATE_TOKENS = 14
#: Each is one token of the embedded base's.
_WORDS = (
    "the with answer this word capital you and has was are key name every for does city letters said only text number "
    "your day from numbers age story help words old country sentence not near letter message after small color year "
    "user say come first found end years person about have kind went set live last nice book these one large past saw "
    "cup boat code box animal apple hat second cat see basket cake clock look stone team green tool red few took ball "
    "round blue bell map which gave like lamp light some full time wood coin came man had there yellow"
)
WORDS = tuple(_WORDS.split())


def make_chats(num_rows: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows in OpenAI's format; the same for the same arguments."""
    generator = random.Random(seed)
    return [_chat(generator) for _ in range(num_rows)]


def write_chats(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _chat(generator: random.Random) -> dict[str, Any]:
    num_words = _num_tokens(generator) - TEMPLATE_TOKENS
    num_asked = max(2, round(num_words * generator.uniform(0.2, 0.5)))
    return {
        "messages": [
            {"role": "user", "content": make_text(generator, num_asked)},
            {"role": "assistant", "content": make_text(generator, num_words - num_asked)},
        ]
    }


def _num_tokens(generator: random.Random) -> int:
    while True:
        drawn = round(math.exp(generator.gauss(math.log(MEDIAN_TOKENS), SIGMA)))
        if MIN_TOKENS <= drawn <= MAX_TOKENS:
            return drawn


def make_text(generator: random.Random, num_words: int) -> str:
    """Words by a law of rank, as in language: there is something to learn, and always the same amount."""
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    return " ".join(generator.choices(WORDS, weights, k=num_words))
