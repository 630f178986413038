"""The one place where training calls the model: token log-probabilities of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caesura.models.loading import forward_logits
from caesura.training.batch import Batch


def token_logprobs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(target) in fp32 and whether the target is the model's first choice, both [B, K]."""
    logits_BKV = forward_logits(model, batch.token_ids_BT, batch.keep_K, use_cache=False).float()
    target_logits_BK = logits_BKV.gather(2, batch.targets_BK.unsqueeze(2)).squeeze(2)
    logprobs_BK = target_logits_BK - torch.logsumexp(logits_BKV, dim=2)
    correct_BK = logits_BKV.detach().argmax(dim=2) == batch.targets_BK
    return logprobs_BK, correct_BK
