from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caesura.data.order import batch_at, derive_seed, epoch_order, num_batches, num_steps

_lengths = st.lists(st.integers(1, 50), max_size=200)
_seeds = st.integers(0, 2**31 - 1)


@given(_lengths, st.integers(1, 20), _seeds, st.integers(0, 5))
def test_an_epoch_has_every_row_once_in_full_batches_but_one(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_order(lengths, batch_size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == num_batches(len(lengths), batch_size) == math.ceil(len(lengths) / batch_size)
    sizes = sorted((len(batch) for batch in batches), reverse=True)
    assert all(size == batch_size for size in sizes[:-1])


@given(_lengths, st.integers(1, 20), _seeds)
def test_the_order_depends_on_no_global_generator_and_leaves_it_alone(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    random.seed(1)
    first = epoch_order(lengths, batch_size, seed, 0)
    state = random.getstate()
    random.seed(2)
    assert epoch_order(lengths, batch_size, seed, 0) == first
    random.seed(1)
    assert random.getstate() == state


def test_the_order_is_the_same_on_every_machine_and_python() -> None:
    assert epoch_order([5, 1, 4, 2, 3], batch_size=2, seed=7, epoch=0) == [[1, 3], [4, 2], [0]]


def test_another_epoch_or_seed_is_another_order() -> None:
    orders = [epoch_order([1] * 100, 4, seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({str(order) for order in orders}) == 25


def test_rows_of_similar_length_come_together_and_long_ones_at_any_time() -> None:
    generator = random.Random(0)
    lengths = [generator.randrange(1, 1000) for _ in range(1024)]

    def num_padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) - lengths[i] for batch in batches for i in batch)

    batches = epoch_order(lengths, 8, seed=0, epoch=0)
    in_file_order = [list(range(start, start + 8)) for start in range(0, 1024, 8)]
    assert num_padding(batches) < num_padding(in_file_order) / 8
    means = [sum(lengths[i] for i in batch) / 8 for batch in batches]
    num_rises = sum(later > earlier for earlier, later in pairwise(means))
    assert 40 < num_rises < 88  # Of 127: sorted batches would rise 120 times.


def test_the_rows_of_a_batch_change_from_epoch_to_epoch() -> None:
    lengths = list(range(1024))
    epochs = [{frozenset(batch) for batch in epoch_order(lengths, 8, 0, epoch)} for epoch in range(2)]
    assert len(epochs[0] & epochs[1]) < 4


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "num_epochs", "steps"), [(10, 5, 1, 2), (11, 5, 3, 9), (1, 256, 2, 2), (0, 4, 3, 0)]
)
def test_a_run_has_the_batches_of_its_epochs_as_steps(
    num_rows: int, batch_size: int, num_epochs: int, steps: int
) -> None:
    assert num_steps(num_rows, batch_size, num_epochs) == steps


def test_the_steps_of_a_run_go_through_each_epochs_batches_in_turn() -> None:
    assert [batch_at(step, num_rows=5, batch_size=2) for step in range(1, 8)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0),
    ]  # fmt: skip


def test_a_seed_has_63_bits_of_the_sha_256_of_its_parts() -> None:
    # printf '[42, "step", 7]' | sha256sum  →  ea7cfbce411c288a…
    assert derive_seed(42, "step", 7) == 0xEA7CFBCE411C288A // 2


@given(st.lists(st.integers() | st.text(), max_size=4), st.lists(st.integers() | st.text(), max_size=4))
def test_different_parts_are_different_seeds(left: list[int | str], right: list[int | str]) -> None:
    assert 0 <= derive_seed(*left) < 2**63
    assert (derive_seed(*left) == derive_seed(*right)) == (left == right)


def test_a_number_is_not_its_text_nor_are_parts_joined() -> None:
    assert len({derive_seed(1), derive_seed("1"), derive_seed(1, 1), derive_seed(11), derive_seed("1", "")}) == 5
