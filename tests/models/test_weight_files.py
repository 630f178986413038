"""A file of weights that is made as it is written has the bytes that safetensors would give it."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from caesura.models.weight_files import DTYPES, PIECE_BYTES, WeightFile


def tensors() -> dict[str, Tensor]:
    """Of every dtype, of many shapes, some larger than a piece, and with names that JSON must write with care."""
    generator = torch.Generator().manual_seed(1)
    named = {
        f'{name}"{number}é.{dtype}': (torch.rand(number, 3, generator=generator) * 100).to(dtype)
        for name in "ba"
        for number, dtype in enumerate(DTYPES)
    }
    sizes = {"large": 2 * PIECE_BYTES, "larger": 3 * PIECE_BYTES + 1, "just": PIECE_BYTES // 4}
    large = {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    return {**named, **large, "step": torch.tensor(3.0), "empty": torch.zeros(0, 4)}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
@pytest.mark.parametrize("weights", [tensors(), {}, {"step": torch.tensor(3.0)}], ids=["many", "none", "one"])
def test_the_bytes_are_those_of_safetensors(weights: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    file = WeightFile(weights, metadata)

    assert bytes(file) == save(weights, metadata)
    assert bytes(file) == b"".join(file)  # anew, as a write that failed is tried again


def test_it_reads_back_as_it_was() -> None:
    weights = tensors()
    again = load(bytes(WeightFile(weights)))

    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_it_is_never_in_memory_as_a_whole() -> None:
    weights = {str(number): torch.rand(PIECE_BYTES) for number in range(8)} | {"small": torch.ones(3)}
    file = WeightFile(weights)
    tracemalloc.start()
    try:
        num_bytes = sum(len(piece) for piece in file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert num_bytes > 32 * PIECE_BYTES
    assert peak < 2 * PIECE_BYTES


def test_a_tensor_that_does_not_lie_in_order_is_refused() -> None:
    with pytest.raises(AssertionError):
        bytes(WeightFile({"turned": torch.ones(2, 3).t()}))
