"""The one place where training calls the model: token log-probabilities of a batch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from caesura.models.loading import forward_logits
from caesura.models.segments import SEGMENTED
from caesura.training.batch import Batch, Flat

#: On a CPU, rows up to this long are attended to by plain matrix products: there the backward of the fused kernel
#: takes a third of a step (docs/benchmarks.md). Longer ones would need too much memory.
MAX_EAGER_TOKENS = 512


def token_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(target) in fp32 and whether the target is the model's first choice, both [B, K]."""
    _choose_attention(model, batch.token_ids_BT)
    logits_BKV = forward_logits(model, batch.token_ids_BT, batch.keep_K, use_cache=False)
    return _of_targets(logits_BKV, batch.targets_BK)


def flat_logprobs(model: nn.Module, batch: Flat) -> tuple[Tensor, Tensor]:
    """log p(target) in fp32 and whether the target is the model's first choice, both [K]."""
    _set_attention(model, SEGMENTED)
    logits_1KV = forward_logits(
        model,
        batch.token_ids_1T,
        batch.keep_K,
        use_cache=False,
        position_ids=batch.positions_1T,
        segments=batch.segments,
    )
    logprobs_1K, correct_1K = _of_targets(logits_1KV, batch.targets_K.unsqueeze(0))
    return logprobs_1K[0], correct_1K[0]


def _of_targets(logits_BKV: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
    logits_BKV = logits_BKV.float()
    # Not logsumexp and gather, whose backwards go over the vocabulary several times more.
    losses_N = F.cross_entropy(logits_BKV.flatten(0, 1), targets_BK.flatten(), reduction="none")
    return -losses_N.view_as(targets_BK), logits_BKV.detach().argmax(dim=2) == targets_BK


def _choose_attention(model: Any, token_ids_BT: Tensor) -> None:
    """A function of the batch's shape, as all arithmetic is."""
    if token_ids_BT.device.type == "cpu" and model._supports_sdpa:
        _set_attention(model, "eager" if token_ids_BT.shape[1] <= MAX_EAGER_TOKENS else "sdpa")


def _set_attention(model: Any, wanted: str) -> None:
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)
