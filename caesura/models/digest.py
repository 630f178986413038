"""A digest of weights: the same weights have the same, and others never."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest_weights(weights: Iterable[tuple[str, Tensor]]) -> bytes:
    """SHA-256 over names, dtypes, shapes and bytes, in the order given."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
