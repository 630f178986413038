"""Each architecture that shares what pairs begin with computes what it computes in rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from caesura.models import segments
from caesura.models.loading import forward_logits
from caesura.models.segments import FAMILIES, SEGMENTED, Segment, Segments, takes_segments

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 7
#: What brings out an architecture's own ways: windows in some layers, caps, scales.
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "granite": {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
}
#: Shared tokens, and the others of each side. The branches of the last two are attended to together, and the padding of
#: the first of them lies further behind its keys than a window reaches.
PAIRS = ((11, 5, 9), (3, 14, 1), (20, 2, 2), (30, 5, 20), (20, 4, 29))


def make_model(family: str) -> nn.Module:
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **(SIZES | OWN.get(family, {})))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


def make_sides() -> list[list[tuple[Tensor, int]]]:
    """Of each pair both sides, and how many tokens they share."""
    generator = torch.Generator().manual_seed(2)
    sides: list[list[tuple[Tensor, int]]] = []
    for num_shared, *others in PAIRS:
        shared = torch.randint(3, 128, (num_shared,), generator=generator)
        sides.append(
            [(torch.cat((shared, torch.randint(3, 128, (num,), generator=generator))), num_shared) for num in others]
        )
    return sides


def in_rows_of_their_own(model: nn.Module) -> Tensor:
    """The logits of every token that is not shared, both sides of a pair one after another."""
    logits: list[Tensor] = []
    for pair in make_sides():
        for side, num_shared in pair:
            all_T = forward_logits(model, side.unsqueeze(0), torch.arange(len(side)), use_cache=False)[0]
            logits.append(all_T[num_shared:])
    return torch.cat(logits)


def in_segments(model: Any) -> Tensor:
    token_ids: list[Tensor] = []
    positions: list[Tensor] = []
    items: list[Segment] = []
    keep: list[Tensor] = []
    start = 0
    for (trunk, num_shared), (other, _) in make_sides():
        fork, end = start + len(trunk), start + len(trunk) + len(other) - num_shared
        token_ids += [trunk, other[num_shared:]]
        positions += [torch.arange(len(trunk)), torch.arange(num_shared, len(other))]
        items += [Segment(start, fork), Segment(fork, end, start, start + num_shared)]
        keep.append(torch.arange(start + num_shared, end))
        start = end
    model.set_attn_implementation(SEGMENTED)
    options = {"position_ids": torch.cat(positions).unsqueeze(0), "segments": Segments(items, torch.device("cpu"))}
    return forward_logits(model, torch.cat(token_ids).unsqueeze(0), torch.cat(keep), use_cache=False, **options)[0]


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Of a loss that looks at every logit."""
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("max_plain_tokens", [0, 1000], ids=["fused", "plain"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_segments_are_computed_as_rows_of_their_own(
    family: str, max_plain_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MAX_PLAIN_TOKENS", max_plain_tokens)
    model = make_model(family)
    assert takes_segments(model)

    alone = in_rows_of_their_own(model)
    gradients_alone = gradients(model, alone)
    together = in_segments(model)

    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients(model, together).items():
        torch.testing.assert_close(gradient, gradients_alone[name], atol=1e-3, rtol=1e-3, msg=name)


def test_an_architecture_that_nobody_has_tried_does_not_share() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=16))

    assert not takes_segments(model)
