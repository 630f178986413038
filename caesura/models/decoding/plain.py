"""Any causal model, computed by `transformers` with its own cache of keys and values.

B: rows, T: tokens of each, C: width, V: vocabulary. Rows are padded on the left, as `transformers` expects it.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from inspect import signature
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from caesura.errors import InvalidRequest
from caesura.models.decoding.adapters import Groups, LoadedAdapter, load_adapter
from caesura.models.loading import forward_logits
from caesura.models.lora import Adapter, in_out_features, wrap_linears

#: What `forward` calls its cache: transformers named it anew in 5.x, a model's own code may not have followed.
_CACHE_NAMES = ("cache", "past_key_values")


class GroupedLinear(nn.Module):
    """A linear layer, and beside it the adapters of the rows of the pass in hand."""

    def __init__(self, name: str, base: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.groups: Groups | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.groups is not None:
            self.groups.add_to(y.flatten(0, -2), x.flatten(0, -2), (self.name,))
        return y


class PlainDecoder:
    """A `Decoder`. The model's linear layers are wrapped."""

    def __init__(self, model: Any) -> None:
        self._cache_name = _cache_name(model)
        self._model = model
        self._lock = Lock()
        self._layers = wrap_linears(model, GroupedLinear)
        self._projections = {(name,): [in_out_features(layer.base)] for name, layer in self._layers.items()}
        embeddings: Tensor = model.get_input_embeddings().weight
        self._dtype = embeddings.dtype
        self.device: torch.device = embeddings.device
        self.vocab_size, self.width = model.get_output_embeddings().weight.shape
        self.bytes_per_token = self._measure_token()

    def load(self, adapter: Adapter) -> LoadedAdapter:
        return load_adapter(adapter, self._projections, self._dtype, self.device)

    def new_rows(self) -> PlainRows:
        return PlainRows(self)

    @torch.inference_mode()
    def hidden_states(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        token_ids_BT = torch.tensor([token_ids], device=self.device)
        with self._using(Groups([adapter], self.device)):
            output = self._model(input_ids=token_ids_BT, output_hidden_states=True, use_cache=False)
        return output.hidden_states[-1][0].float()

    @torch.inference_mode()
    def prompt_logits(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        token_ids_BT = torch.tensor([token_ids], device=self.device)
        all_K = torch.arange(len(token_ids), device=self.device)
        with self._using(Groups([adapter], self.device)):
            return forward_logits(self._model, token_ids_BT, all_K, use_cache=False)[0].float()

    def forward(self, token_ids_BT: Tensor, is_token_BW: Tensor, cache: DynamicCache, groups: Groups) -> Tensor:
        """The logits of the next tokens, [B, V]. `is_token_BW` is 0 where the rows are padded, from the first column
        of the cache on.
        """
        num_tokens = token_ids_BT.shape[1]
        positions_BT = (is_token_BW.cumsum(1) - 1).clamp_(min=0)[:, -num_tokens:]
        last_K = torch.tensor([num_tokens - 1], device=self.device)
        with self._using(groups):
            logits_BKV = forward_logits(
                self._model,
                token_ids_BT,
                last_K,
                attention_mask=is_token_BW,
                position_ids=positions_BT,
                use_cache=True,
                **{self._cache_name: cache},
            )
        return logits_BKV[:, 0].float()

    @torch.inference_mode()
    def _measure_token(self) -> int:
        cache = DynamicCache()
        token_ids_BT = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.forward(token_ids_BT, torch.ones_like(token_ids_BT), cache, Groups([None], self.device))
        return sum(tensor.nbytes for keys_and_values in _tensors(cache) for tensor in keys_and_values)

    @contextmanager
    def _using(self, groups: Groups) -> Generator[None, None, None]:
        """The layers look up their adapters while they compute, so one pass at a time does."""
        with self._lock:
            for layer in self._layers.values():
                layer.groups = groups
            yield


class PlainRows:
    """`Rows` of a PlainDecoder."""

    def __init__(self, decoder: PlainDecoder) -> None:
        self._decoder = decoder
        self._adapters: list[LoadedAdapter | None] = []
        self._cache = DynamicCache()
        self._is_token_BW = torch.empty(0, 0, dtype=torch.long, device=decoder.device)

    @property
    def num_rows(self) -> int:
        return len(self._adapters)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None]) -> Tensor:
        decoder = self._decoder
        width = max(map(len, prompts))
        rows = [([0] * (width - len(prompt)), list(prompt)) for prompt in prompts]
        token_ids_BT = torch.tensor([padding + prompt for padding, prompt in rows], device=decoder.device)
        is_token_BT = torch.tensor([padding + [1] * len(prompt) for padding, prompt in rows], device=decoder.device)
        cache = DynamicCache()
        logits_BV = decoder.forward(
            token_ids_BT, is_token_BT, cache, Groups(adapters, decoder.device, num_tokens=width)
        )
        self._append(cache, is_token_BT)
        self._adapters += adapters
        return logits_BV

    @torch.inference_mode()
    def copy(self, row: int, num_copies: int) -> None:
        self._select([*range(self.num_rows), *[row] * num_copies])

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        decoder = self._decoder
        self._is_token_BW = F.pad(self._is_token_BW, (0, 1), value=1)
        token_ids_BT = torch.tensor(token_ids, device=decoder.device).unsqueeze(1)
        groups = Groups(self._adapters, decoder.device)
        return decoder.forward(token_ids_BT, self._is_token_BW, self._cache, groups)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        kept = list(range(self.num_rows))
        kept[row] = kept[-1]
        self._select(kept[:-1])

    def _append(self, cache: DynamicCache, is_token_BT: Tensor) -> None:
        new_tensors = _tensors(cache)
        if not self.num_rows:
            self._cache, self._is_token_BW = cache, is_token_BT
            return
        missing = is_token_BT.shape[1] - self._is_token_BW.shape[1]
        joined = DynamicCache()
        for index, (old, new) in enumerate(zip(_tensors(self._cache), new_tensors, strict=True)):
            keys, values = (
                torch.cat((_pad(old_BHWD, missing), _pad(new_BHWD, -missing)))
                for old_BHWD, new_BHWD in zip(old, new, strict=True)
            )
            joined.update(keys, values, index)
        self._cache = joined
        self._is_token_BW = torch.cat(
            (F.pad(self._is_token_BW, (max(0, missing), 0)), F.pad(is_token_BT, (max(0, -missing), 0)))
        )

    def _select(self, rows: list[int]) -> None:
        """The rows as they are named, from now on, without the columns that none of them uses. With none left it is as
        at the beginning.
        """
        self._adapters = [self._adapters[row] for row in rows]
        rows_B = torch.tensor(rows, dtype=torch.long, device=self._decoder.device)
        self._cache.batch_select_indices(rows_B)
        is_token_BW = self._is_token_BW.index_select(0, rows_B)
        first = int(is_token_BW.amax(dim=0).argmax()) if rows else 0
        self._is_token_BW = is_token_BW[:, first:]
        for layer in self._cache.layers:
            assert isinstance(layer, DynamicLayer)
            if first and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values by layer. Raises InvalidRequest when a layer has none of its own."""
    tensors: list[tuple[Tensor, Tensor]] = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise _remembers_otherwise()
        tensors.append((layer.keys, layer.values))
    return tensors


def _cache_name(model: Any) -> str:
    """What the model's `forward` calls its cache. Raises InvalidRequest when it keeps more than keys and values there,
    such as the state of a recurrence: that cannot be padded, so rows could not join."""
    names = [name for name in _CACHE_NAMES if name in signature(model.forward).parameters]
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if not names or model._is_stateful or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise _remembers_otherwise()
    return names[0]


def _remembers_otherwise() -> InvalidRequest:
    return InvalidRequest(
        "This model remembers in another way than by keys and values, so its answers cannot be made together. "
        "Serve it elsewhere and set 'engine_url' (docs/vllm.md).",
        param="model",
        code="unsupported_model",
    )


def _pad(tensor_BHWD: Tensor, num_columns: int) -> Tensor:
    """`num_columns` more columns of zeros on the left, if that is more than none."""
    return F.pad(tensor_BHWD, (0, 0, max(0, num_columns), 0))
