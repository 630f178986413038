"""Small models of random weights, each beside what `transformers` makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from caesura.models.decoding import Decoder, Rows
from caesura.models.decoding.fused import FusedDecoder
from caesura.models.decoding.plain import PlainDecoder

VOCAB_SIZE = 500
#: Of logits in float32, which are about ±10 here: another order of the same sums.
TOLERANCE = 1e-4

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Tied, a random model says the token before again and again.
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama-biases": lambda: LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True),
    "llama-3-rope": lambda: LlamaConfig(
        **_SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral-window": lambda: MistralConfig(**_SIZES, sliding_window=12),
    "qwen2-window": lambda: Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=14, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=48),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES,
        head_dim=32,
        query_pre_attn_scalar=20,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
}
#: What `fused.py` computes.
FUSIBLE = [name for name in CONFIGS if name != "gpt2"]
CASES = [*((name, FusedDecoder) for name in FUSIBLE), *((name, PlainDecoder) for name in CONFIGS)]


def make_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights each time, large enough that the text goes on, none of them 0 or 1 throughout."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.25
        parameter.data.copy_(noise if parameter.ndim > 1 else parameter.data + noise)
    return model.to(dtype).eval()


def make_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


class Oracle:
    """What `transformers` says, one sequence at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], Tensor]:
        """The greedy tokens, and the logits of each, [T, V]."""
        token_ids = torch.tensor([prompt])
        output = self._model.generate(
            input_ids=token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits)

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        return self._model(input_ids=torch.tensor([token_ids])).logits[0].float()

    @torch.no_grad()
    def hidden_states(self, token_ids: Sequence[int]) -> Tensor:
        output = self._model(input_ids=torch.tensor([token_ids]), output_hidden_states=True)
        return output.hidden_states[-1][0].float()


@dataclass(frozen=True, slots=True)
class Case:
    """One family, computed by one of the decoders, and what it must give."""

    name: str
    kind: type[FusedDecoder] | type[PlainDecoder]
    decoder: Decoder
    oracle: Oracle


@pytest.fixture(scope="session", params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def case(request: pytest.FixtureRequest) -> Case:
    name, kind = request.param
    return Case(name, kind, kind(make_model(name)), Oracle(make_model(name)))


def go_on(rows: Rows, logits_BV: Tensor, num_tokens: int) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy tokens of all rows, and the logits of each, [T, V]; `logits_BV` are of the first."""
    steps = [logits_BV]
    for _ in range(num_tokens - 1):
        steps.append(rows.step(steps[-1].argmax(dim=-1).tolist()))
    logits_BTV = torch.stack(steps, dim=1)
    return logits_BTV.argmax(dim=-1).tolist(), list(logits_BTV)


def assert_same(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
