"""Safetensors files (https://huggingface.co/docs/safetensors) that are made as they are written: a header, then the
tensors' bytes from where they lie in memory. Made as bytes first, a file would be in memory twice more."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: The format's names of dtypes, in the order in which their tensors are written: larger numbers first, so that each is
#: aligned.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: A file is written in pieces of about so many bytes; a tensor that is larger is one of its own.
PIECE_BYTES = 2**20
_PLACES = {dtype: place for place, dtype in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of `tensors`, with the bytes that `safetensors.torch.save` would give it. They must be on the CPU and
    contiguous, and stay as they are until it is written."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None = None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """The pieces of the file, anew each time."""
        ordered = dict(sorted(self.tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0])))
        waiting = bytearray(make_header(map(_describe, ordered.items()), self.metadata))
        for tensor in ordered.values():
            view = _bytes_of(tensor)
            if len(waiting) + len(view) <= PIECE_BYTES:
                waiting += view
                continue
            yield bytes(waiting)
            waiting = bytearray()
            yield view
        yield bytes(waiting)

    def __bytes__(self) -> bytes:
        return b"".join(self)


def make_header(
    described: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Eight bytes with the length of the JSON behind them, which says where tensors lie. `described`: of each its name,
    dtype, shape and number of bytes, in the order in which they are written."""
    told: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    place = 0
    for name, dtype, shape, num_bytes in described:
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + num_bytes]}
        place += num_bytes
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _describe(item: tuple[str, Tensor]) -> tuple[str, str, Sequence[int], int]:
    name, tensor = item
    return name, DTYPES[tensor.dtype], tensor.shape, tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own memory."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    array: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(array)
