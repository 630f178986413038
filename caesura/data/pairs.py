"""A row of preferences → two token sequences that begin alike. No I/O.

Each side is rendered as a conversation of its own, in which only the output's assistant messages are learned; what
the two have in common is then found in the tokens themselves, so that no template has to keep a promise about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caesura.data.preferences import PreferenceRow
from caesura.data.render import Example, Tokenizer, render_row
from caesura.data.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two answers to one prompt as the model sees them, each with the prompt before it.

    `loss_mask` of a side is 1 at the tokens that are compared. Two pairs are equal only when they are one.
    """

    line: int
    preferred: Example
    rejected: Example
    #: How many tokens both sides begin with.
    num_shared: int

    @property
    def sides(self) -> tuple[Example, Example]:
        return self.preferred, self.rejected

    @property
    def num_tokens(self) -> int:
        """Of both sides, the shared ones counted twice."""
        return self.preferred.num_tokens + self.rejected.num_tokens

    @property
    def num_truncated(self) -> int:
        return max(side.num_truncated for side in self.sides)

    @property
    def teaches(self) -> bool:
        """Whether there is something to compare: tokens on both sides, and sides that differ."""
        differ = self.preferred.token_ids != self.rejected.token_ids
        return differ and all(side.num_loss_tokens for side in self.sides)


def render_pair(row: PreferenceRow, tokenizer: Tokenizer, max_tokens: int) -> Pair:
    """Both sides of the row, each as at most `max_tokens` tokens. Raises `InvalidData` as `render_row` does."""
    preferred, rejected = (
        render_row(_conversation(row, output), tokenizer, max_tokens) for output in (row.preferred, row.non_preferred)
    )
    return Pair(row.line, preferred, rejected, _num_shared(preferred.token_ids, rejected.token_ids))


def _conversation(row: PreferenceRow, output: list[dict[str, Any]]) -> Row:
    prompt = [message | {"weight": 0} if message["role"] == "assistant" else message for message in row.messages]
    return Row(row.line, [*prompt, *output], row.tools, row.parallel_tool_calls)


def _num_shared(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
