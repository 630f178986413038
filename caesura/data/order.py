"""The order of rows and steps, and the seeds of a run: functions of their arguments alone. No global generator."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
#: Rows of similar length are sought among this many batches' worth of shuffled rows.
_WINDOW_BATCHES = 50


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) out of the parts. `1` and `"1"` are different parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def epoch_order(num_tokens: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, as indices into `num_tokens` (the rows' lengths in tokens).

    Every row comes once, beside rows of similar length. All batches have `batch_size` rows but one, which
    holds the remainder and may stand anywhere.
    """
    # Only `random()` has a sequence that Python guarantees across versions; `shuffle` does not.
    generator = random.Random(derive_seed("epoch_order", seed, epoch))
    shuffled = _shuffled(range(len(num_tokens)), generator)
    windows = _cut(shuffled, batch_size * _WINDOW_BATCHES)
    by_length = [index for window in windows for index in sorted(window, key=lambda index: num_tokens[index])]
    return _shuffled(_cut(by_length, batch_size), generator)


def num_batches(num_rows: int, batch_size: int) -> int:
    """How many batches, and so steps, an epoch has."""
    return math.ceil(num_rows / batch_size)


def num_steps(num_rows: int, batch_size: int, num_epochs: int) -> int:
    """How many steps a run has."""
    return num_epochs * num_batches(num_rows, batch_size)


def batch_at(step: int, num_rows: int, batch_size: int) -> tuple[int, int]:
    """The 0-based epoch of the 1-based `step`, and the index of its batch in `epoch_order` of that epoch."""
    return divmod(step - 1, num_batches(num_rows, batch_size))


def _shuffled(items: Sequence[_T], generator: random.Random) -> list[_T]:
    return sorted(items, key=lambda _: generator.random())


def _cut(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
