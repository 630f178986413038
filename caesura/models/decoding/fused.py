"""Llama and its kin, computed from their own weights in as few operations as there can be.

    x = x + O · attention(rope(Q · n), rope(K · n), V · n)        n = rmsnorm(x)
    x = x + down · (act(gate · m) * (up · m))                     m = rmsnorm(x)

Queries, keys and values come of one matrix product, gate and up of another. Qwen 3 and Gemma 3 norm queries and keys;
Gemma 3 norms what is added to x, too.

B: rows, T: tokens of each, M: all tokens, row by row; C: width, N: heads of queries, H: heads of keys and values,
D: their size, W: columns of the cache, V: vocabulary.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caesura.models.decoding.adapters import Groups, LoadedAdapter, load_adapter
from caesura.models.decoding.cache import CacheShape, KeyValueCache
from caesura.models.decoding.layers import FAMILIES, Layer, Linear, Norm, Projection, Taker
from caesura.models.lora import Adapter

#: Tokens of one pass, padding included; longer prompts are cut into several, to bound the memory.
PASS_TOKENS = 1024

#: Rotations are made for so many positions at least.
MIN_POSITIONS = 512

#: From a layer and its queries, keys and values, [M, N, D] and [M, H, D], to what it attends to, [M, N · D].
Attend = Callable[[int, Layer, Tensor, Tensor, Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]


class FusedDecoder:
    """A `Decoder`. The model's linear layers lose their weights to it."""

    def __init__(self, model: Any) -> None:
        config, taker = model.config, Taker(model)
        self._embed = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._rotates_by_kind = FAMILIES[config.model_type].rotates_by_kind
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        self._dtype: torch.dtype = self._embed.weight.dtype
        self.device: torch.device = self._embed.weight.device
        head = model.get_output_embeddings()
        self.vocab_size: int = head.out_features
        self.width: int = head.in_features
        self._head = Linear(head.weight.detach(), head.bias)
        self._final_norm: Norm = taker.norm(model.model.norm)
        self._layers = taker.layers()
        self._kinds = {layer.kind for layer in self._layers}
        #: By kind, of the positions that came so far.
        self._rotations: dict[str, Rotation] = {}
        self._projections = taker.projections

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(len(self._layers), self._num_kv_heads, self._head_dim, self._dtype, self.device)

    @property
    def bytes_per_token(self) -> int:
        return self.cache_shape.bytes_per_token

    def load(self, adapter: Adapter) -> LoadedAdapter:
        return load_adapter(adapter, self._projections, self._dtype, self.device)

    def new_rows(self) -> FusedRows:
        return FusedRows(self)

    @torch.inference_mode()
    def hidden_states(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        return torch.cat(list(Prompts(self, [token_ids], [adapter]).passes()), dim=1)[0].float()

    @torch.inference_mode()
    def prompt_logits(self, token_ids: Sequence[int], adapter: LoadedAdapter | None) -> Tensor:
        return self.logits(torch.cat(list(Prompts(self, [token_ids], [adapter]).passes()), dim=1)[0])

    def logits(self, hidden_MC: Tensor) -> Tensor:
        """From the last hidden states to the logits of the next tokens, [M, V]."""
        return self._head(hidden_MC).float()

    def forward(self, token_ids_M: Tensor, positions_M: Tensor, attend: Attend, groups: Groups) -> Tensor:
        """The last hidden states, [M, C]."""
        x_MC: Tensor = self._embed(token_ids_M)
        rotations = {kind: self._rotation(positions_M, kind) for kind in self._kinds}
        for index, layer in enumerate(self._layers):
            qkv_M = _project(layer.norm(x_MC), layer.qkv, groups)
            attended_M = attend(index, layer, *self._heads(layer, qkv_M, rotations[layer.kind]))
            x_MC = _add(x_MC, attended_M, layer.output, layer.attended_norm, groups)
            gate_M, up_M = _project(layer.mlp_norm(x_MC), layer.gate_up, groups).chunk(2, dim=-1)
            x_MC = _add(x_MC, layer.act(gate_M).mul_(up_M), layer.down, layer.made_norm, groups)
        return self._final_norm(x_MC)

    def _heads(self, layer: Layer, qkv_M: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        num_heads, num_kv_heads = self._num_heads, self._num_kv_heads
        heads = qkv_M.unflatten(-1, (num_heads + 2 * num_kv_heads, self._head_dim))
        rotated, values = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            rotated = torch.cat((layer.query_norm(rotated[:, :num_heads]), layer.key_norm(rotated[:, num_heads:])), 1)
        rotated = _rotate(rotated, rotation)
        return rotated[:, :num_heads], rotated[:, num_heads:], values

    def _rotation(self, positions_M: Tensor, kind: str) -> Rotation:
        """Cosines and signed sines (Su et al. 2021, arXiv:2104.09864), [M, 1, D]."""
        num_positions = self._rotations[kind][0].shape[0] if kind in self._rotations else 0
        num_wanted = int(positions_M.max()) + 1
        if num_wanted > num_positions:
            self._rotations[kind] = self._rotate_all(max(num_wanted, 2 * num_positions, MIN_POSITIONS), kind)
        cos, signed_sin = self._rotations[kind]
        return cos[positions_M], signed_sin[positions_M]

    def _rotate_all(self, num_positions: int, kind: str) -> Rotation:
        """Of all positions. The model's own module knows all ways of scaling them."""
        like = torch.empty(0, dtype=self._dtype, device=self.device)
        positions_1T = torch.arange(num_positions, device=self.device).unsqueeze(0)
        cos_1TD, sin_1TD = self._rotary(like, positions_1T, *((kind,) if self._rotates_by_kind else ()))
        sin_1TD[..., : self._head_dim // 2].neg_()
        return cos_1TD[0].unsqueeze(1), sin_1TD[0].unsqueeze(1)


class FusedRows:
    """`Rows` of a FusedDecoder."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder
        self._cache = KeyValueCache(decoder.cache_shape)
        self._adapters: list[LoadedAdapter | None] = []
        #: None: to be made anew.
        self._groups: Groups | None = None
        self._masks: dict[int | None, Tensor | None] = {}
        self._zero = torch.zeros((), dtype=decoder.cache_shape.dtype, device=decoder.device)

    @property
    def num_rows(self) -> int:
        return len(self._adapters)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None]) -> Tensor:
        pending = Prompts(self._decoder, prompts, adapters)
        *_, hidden_BTC = pending.passes()
        self._cache.append(pending.keys, pending.values, [len(prompt) for prompt in prompts])
        self._change([*self._adapters, *adapters])
        return self._decoder.logits(hidden_BTC[:, -1])

    @torch.inference_mode()
    def copy(self, row: int, num_copies: int) -> None:
        self._cache.copy(row, num_copies)
        self._change([*self._adapters, *[self._adapters[row]] * num_copies])

    @torch.inference_mode()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        cache, device = self._cache, self._decoder.device
        if self._groups is None:
            self._groups = Groups(self._adapters, device)
        cache.advance()
        self._masks.clear()
        positions_B = torch.tensor([length - 1 for length in cache.lengths], device=device)
        token_ids_B = torch.tensor(token_ids, device=device)
        return self._decoder.logits(self._decoder.forward(token_ids_B, positions_B, self._attend, self._groups))

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        self._cache.remove(row)
        adapters = self._adapters
        adapters[row] = adapters[-1]
        self._change(adapters[:-1])

    def _change(self, adapters: list[LoadedAdapter | None]) -> None:
        self._adapters, self._groups = adapters, None

    def _attend(self, index: int, layer: Layer, queries_BND: Tensor, keys_BHD: Tensor, values_BHD: Tensor) -> Tensor:
        """By plain products: for a single token they are faster than the fused kernels."""
        num_rows, num_heads, head_dim = queries_BND.shape
        keys, values = self._cache.write(index, keys_BHD, values_BHD)  # [B · H, W, D]
        queries = queries_BND.reshape(len(keys), -1, head_dim)
        scores = torch.baddbmm(self._zero, queries, keys.transpose(1, 2), beta=0, alpha=layer.scaling)
        mask_BW = self._mask(layer.window)
        if mask_BW is not None:
            scores.view(num_rows, num_heads, -1).masked_fill_(mask_BW.unsqueeze(1), -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        return weights.bmm(values).view(num_rows, num_heads * head_dim)

    def _mask(self, window: int | None) -> Tensor | None:
        if window not in self._masks:
            self._masks[window] = self._cache.mask(window)
        return self._masks[window]


class Prompts:
    """Prompts on their way into the cache: padded on the left to one length, a pass at a time."""

    def __init__(
        self, decoder: FusedDecoder, prompts: Sequence[Sequence[int]], adapters: Sequence[LoadedAdapter | None]
    ) -> None:
        self._decoder = decoder
        self._adapters = adapters
        width = max(map(len, prompts))
        starts = [width - len(prompt) for prompt in prompts]
        shape = decoder.cache_shape
        self._token_ids_BT = torch.tensor(
            [[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)], device=shape.device
        )
        self._starts_B1 = torch.tensor(starts, device=shape.device).unsqueeze(1)
        self._is_padded = any(starts)
        #: The columns of the pass in hand.
        self._begin = self._end = 0
        self._masks: dict[int | None, Tensor | None] = {}
        size = (len(prompts), shape.num_heads, width, shape.head_dim)
        #: By layer, [B, H, T, D].
        self.keys = [torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.num_layers)]
        self.values = [torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.num_layers)]

    def passes(self) -> Sequence[Tensor]:
        """The last hidden states, [B, T, C], a pass at a time."""
        num_rows, width = self._token_ids_BT.shape
        size = max(1, PASS_TOKENS // num_rows)
        return [self._pass(begin, min(begin + size, width)) for begin in range(0, width, size)]

    def _pass(self, begin: int, end: int) -> Tensor:
        self._begin, self._end = begin, end
        self._masks.clear()
        columns_T = torch.arange(begin, end, device=self._decoder.device)
        positions_BT = (columns_T - self._starts_B1).clamp_(min=0)
        token_ids_BT = self._token_ids_BT[:, begin:end]
        groups = Groups(self._adapters, self._decoder.device, num_tokens=end - begin)
        hidden_MC = self._decoder.forward(token_ids_BT.flatten(), positions_BT.flatten(), self._attend, groups)
        return hidden_MC.unflatten(0, token_ids_BT.shape)

    def _attend(self, index: int, layer: Layer, queries_MND: Tensor, keys_MHD: Tensor, values_MHD: Tensor) -> Tensor:
        begin, end = self._begin, self._end
        num_tokens = end - begin
        self.keys[index][:, :, begin:end] = keys_MHD.unflatten(0, (-1, num_tokens)).transpose(1, 2)
        self.values[index][:, :, begin:end] = values_MHD.unflatten(0, (-1, num_tokens)).transpose(1, 2)
        mask_B1TW = self._mask(layer.window)
        attended_BNTD = F.scaled_dot_product_attention(
            queries_MND.unflatten(0, (-1, num_tokens)).transpose(1, 2),
            self.keys[index][:, :, :end],
            self.values[index][:, :, :end],
            attn_mask=mask_B1TW,
            is_causal=mask_B1TW is None,
            scale=layer.scaling,
            enable_gqa=True,
        )
        return attended_BNTD.transpose(1, 2).flatten(2).flatten(0, 1)

    def _mask(self, window: int | None) -> Tensor | None:
        """Where each token may look; None: at all before it, which are all of this pass."""
        if window not in self._masks:
            is_plain = self._begin == 0 and not self._is_padded and (window is None or window >= self._end)
            self._masks[window] = None if is_plain else self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor:
        columns_W = torch.arange(self._end, device=self._decoder.device)
        distances_TW = columns_W[self._begin :].unsqueeze(1) - columns_W
        is_seen_TW = (distances_TW >= 0) & (distances_TW < (window or self._end))
        is_token_B1W = (columns_W >= self._starts_B1).unsqueeze(1)
        # What comes before a row's first token sees itself: seeing nothing, it would be no number.
        return ((is_seen_TW & is_token_B1W) | (distances_TW == 0)).unsqueeze(1)


def _project(x_M: Tensor, projection: Projection, groups: Groups) -> Tensor:
    y_M = projection.linear(x_M)
    groups.add_to(y_M, x_M, projection.names)
    return y_M


def _add(x_MC: Tensor, y_M: Tensor, projection: Projection, norm: Norm | None, groups: Groups) -> Tensor:
    """`x_MC` and the projection of `y_M`, normed if there is a norm."""
    if norm is not None:
        return x_MC + norm(_project(y_M, projection, groups))
    sum_MC = projection.linear.add_to(x_MC, y_M)
    groups.add_to(sum_MC, y_M, projection.names)
    return sum_MC


def _rotate(x_MND: Tensor, rotation: Rotation) -> Tensor:
    cos_M1D, signed_sin_M1D = rotation
    return x_MND.mul(cos_M1D).addcmul_(x_MND.roll(x_MND.shape[-1] // 2, -1), signed_sin_M1D)
