"""The one place where training calls the model: token log-probabilities of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from caesura.models.loading import forward_logits
from caesura.training.batch import Batch

#: On a CPU, rows up to this long are attended to by plain matrix products: there the backward of the fused kernel
#: takes a third of a step (docs/benchmarks.md). Longer ones would need too much memory.
MAX_EAGER_TOKENS = 512


def token_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(target) in fp32 and whether the target is the model's first choice, both [B, K]."""
    _choose_attention(model, batch.token_ids_BT)
    logits_BKV = forward_logits(model, batch.token_ids_BT, batch.keep_K, use_cache=False).float()
    target_logits_BK = logits_BKV.gather(2, batch.targets_BK.unsqueeze(2)).squeeze(2)
    logprobs_BK = target_logits_BK - torch.logsumexp(logits_BKV, dim=2)
    correct_BK = logits_BKV.detach().argmax(dim=2) == batch.targets_BK
    return logprobs_BK, correct_BK


def _choose_attention(model: Any, token_ids_BT: Tensor) -> None:
    """A function of the batch's shape, as all arithmetic is."""
    if token_ids_BT.device.type != "cpu" or not model._supports_sdpa:
        return
    wanted = "eager" if token_ids_BT.shape[1] <= MAX_EAGER_TOKENS else "sdpa"
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)
