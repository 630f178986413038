"""What a decoder is. B: rows, T: tokens, V: vocabulary, C: width of the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.lora import Adapter


class Rows(Protocol):
    """Token sequences that grow together. A row is addressed by its place, from 0."""

    @property
    def num_rows(self) -> int: ...

    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None]) -> Tensor:
        """Append a row for each prompt, none of them empty, with its adapter; returns the logits of their next tokens,
        [B, V].
        """
        ...

    def copy(self, row: int, num_copies: int) -> None:
        """Append rows that are as `row` is now."""
        ...

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Append a token to each row; returns the logits of the next ones, [B, V]."""
        ...

    def remove(self, row: int) -> None:
        """Take the row out; the last one takes its place."""
        ...


class Decoder(Protocol):
    """A base model with room for adapters. All logits and hidden states are float32."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def width(self) -> int:
        """C."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Of the keys and values of one token of one row."""
        ...

    def load(self, adapter: Adapter) -> LoadedAdapter:
        """The adapter, ready to be used. Raises BlobDamaged when it does not fit the base."""
        ...

    def new_rows(self) -> Rows:
        """No rows yet. Several of these may be in use in turn."""
        ...

    def hidden_states(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        """The last hidden states of one sequence, [T, C]."""
        ...

    def prompt_logits(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        """The logits of what follows each token of one sequence, [T, V]."""
        ...
