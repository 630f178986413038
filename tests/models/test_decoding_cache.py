from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from caesura.models.decoding.cache import CacheShape, KeyValueCache

SHAPE = CacheShape(num_layers=2, num_heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))
MAX_ROWS = 9
LENGTHS = st.one_of(st.integers(1, 12), st.integers(1, 130))


class CacheBesideLists(RuleBasedStateMachine):
    """The cache beside a list of rows, each [layers, keys and values, H, tokens, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KeyValueCache(SHAPE)
        self.rows: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    @precondition(lambda self: len(self.rows) < MAX_ROWS)
    @rule(lengths=st.lists(LENGTHS, min_size=1, max_size=3), is_damaged=st.booleans())
    def append(self, lengths: list[int], is_damaged: bool) -> None:
        """The padding holds numbers; those of damaged rows are none."""
        width = max(lengths)
        tensors = self.draw(SHAPE.num_layers, 2, len(lengths), SHAPE.num_heads, width, SHAPE.head_dim)
        if is_damaged:
            tensors.fill_(torch.nan)
        self.cache.append(list(tensors[:, 0]), list(tensors[:, 1]), lengths)
        self.rows += [tensors[:, :, row, :, width - length :] for row, length in enumerate(lengths)]

    @precondition(lambda self: 0 < len(self.rows) < MAX_ROWS)
    @rule(data=st.data(), num_copies=st.integers(1, 3))
    def copy(self, data: st.DataObject, num_copies: int) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.cache.copy(row, num_copies)
        self.rows += [self.rows[row]] * num_copies

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.cache.remove(row)
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    @precondition(lambda self: self.rows)
    @rule(num_steps=st.integers(1, 40), window=st.one_of(st.none(), st.integers(1, 60)))
    def step(self, num_steps: int, window: int | None) -> None:
        for _ in range(num_steps):
            self.cache.advance()
            added = self.draw(SHAPE.num_layers, 2, len(self.rows), SHAPE.num_heads, SHAPE.head_dim)
            self.rows = [
                torch.cat((row, added[:, :, index].unsqueeze(3)), dim=3) for index, row in enumerate(self.rows)
            ]
            written = [self.cache.write(layer, keys, values) for layer, (keys, values) in enumerate(added)]
        width = max(self.cache.lengths)
        for seen in {window, width - 1 or None, width, width + 1, None}:
            self.check(written, self.cache.mask(seen), seen)

    def check(self, written: list[tuple[Tensor, Tensor]], mask_BW: Tensor | None, window: int | None) -> None:
        size = (len(self.rows), SHAPE.num_heads, -1, SHAPE.head_dim)
        for layer, tensors in enumerate(written):
            for side, tensor in enumerate(tensors):
                held = tensor.reshape(size)
                width = held.shape[2]
                assert width == max(row.shape[3] for row in self.rows)
                for own, row in zip(held, self.rows, strict=True):
                    length = row.shape[3]
                    assert torch.equal(own[:, width - length :].nan_to_num(7), row[layer, side].nan_to_num(7))
                    # What is masked is multiplied with 0, which does not undo what is no number.
                    assert own.isfinite().all() or row[layer, side].isnan().any()
        columns_W = torch.arange(width)
        for index, row in enumerate(self.rows):
            num_seen = row.shape[3] if window is None else min(window, row.shape[3])
            is_hidden_W = columns_W < width - num_seen
            assert torch.equal(mask_BW[index] if mask_BW is not None else columns_W < 0, is_hidden_W)

    @invariant()
    def lengths_are_those_of_the_rows(self) -> None:
        assert self.cache.num_rows == len(self.rows)
        assert self.cache.lengths == [row.shape[3] for row in self.rows]


def test_the_cache_holds_what_a_list_of_rows_would() -> None:
    run_state_machine_as_test(
        CacheBesideLists,
        settings=settings(
            max_examples=120,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("width", [6, 7, 8, 9, 12, 20])
def test_a_row_stays_as_it_is_when_a_longer_one_joins_after_the_longest_has_left(width: int) -> None:
    """Each row is moved within the memory that is there, if that is done at all: what moves may not reach itself."""
    machine = CacheBesideLists()
    machine.append([7], is_damaged=False)
    machine.append([3, 2], is_damaged=False)
    machine.cache.remove(0)
    machine.rows = [machine.rows[2], machine.rows[1]]
    machine.append([width], is_damaged=False)
    machine.step(2, window=4)


def test_a_cache_that_has_been_emptied_is_as_a_new_one() -> None:
    machine = CacheBesideLists()
    for lengths in ([90, 3], [4], [200]):
        machine.append(lengths, is_damaged=True)
        machine.step(3, None)
        for _ in lengths:
            machine.cache.remove(0)
        machine.rows.clear()
    machine.append([2, 150], is_damaged=False)
    machine.step(30, 20)


def test_a_token_takes_its_keys_and_values_in_every_layer() -> None:
    sizes: dict[str, Any] = {"num_layers": 3, "num_heads": 2, "head_dim": 8, "device": torch.device("cpu")}

    assert CacheShape(**sizes, dtype=torch.float32).bytes_per_token == 2 * 3 * 2 * 8 * 4
    assert CacheShape(**sizes, dtype=torch.bfloat16).bytes_per_token == 2 * 3 * 2 * 8 * 2
