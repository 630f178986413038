"""Tokens by transformers' and PEFT's `generate` and by Caesura's sampler, in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.programs import arguments, finish
from caesura.inference.prompt import Prompt
from caesura.inference.sampler import Parameters, Sampler
from caesura.models.decoding import Decoder, build_decoder
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.lora import Adapter, add_lora, fresh_adapter, to_files
from caesura.settings import EMBEDDED_BASE_PATH
from caesura.training.adapters import LORA_ALPHA
from caesura.training.hyperparameters import LORA_RANK

NUM_PROMPT_TOKENS = 32
NUM_ADAPTERS = 8
#: A model of 33 million parameters, with random weights: what it says does not matter here.
MEDIUM = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 9,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}

#: Makes the tokens, and returns how many.
Run = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Models:
    """One base model in each contender's form."""

    plain: Any
    peft: Any
    decoder: Decoder
    adapters: list[Adapter]


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    with TemporaryDirectory() as folder:
        path = str(EMBEDDED_BASE_PATH) if asked["model"] == "embedded" else _make_medium(folder)
        models = _load(path, getattr(torch, asked["dtype"]))
    results: dict[str, Any] = {"num_parameters": sum(parameter.numel() for parameter in models.plain.parameters())}
    for batch_size in asked["batch_sizes"]:
        results[str(batch_size)] = _compare(models, batch_size, asked["num_tokens"], asked["rounds"])
    finish(results)


def _make_medium(folder: str) -> str:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MEDIUM)).save_pretrained(folder)
    return folder


def _load(path: str, dtype: torch.dtype) -> Models:
    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    adapters = [_random_adapter(load(), seed) for seed in range(NUM_ADAPTERS)]
    with TemporaryDirectory() as folder:
        for name, data in to_files(adapters[0], "base").items():
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)
        peft = PeftModel.from_pretrained(load(), folder).eval()
    return Models(load(), peft, build_decoder(load()), adapters)


def _random_adapter(model: Any, seed: int) -> Adapter:
    adapter = fresh_adapter(add_lora(model), LORA_RANK, LORA_ALPHA, seed)  # B is zero: as if there were none
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.01, generator=generator)
    return adapter


def _compare(models: Models, batch_size: int, num_tokens: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """Of each contender the median tokens/s and tokens per CPU second over the rounds; each round has each once."""
    generator = torch.Generator().manual_seed(batch_size)
    vocab_size = models.decoder.vocab_size
    token_ids_BT = torch.randint(8, vocab_size, (batch_size, NUM_PROMPT_TOKENS), generator=generator)
    loaded = [models.decoder.load(adapter) for adapter in models.adapters]
    prompts: list[list[int]] = token_ids_BT.tolist()
    sampler = Sampler(models.decoder)

    def sample(*adapters: LoadedAdapter | None) -> int:
        """The adapters go round."""
        asked = [Prompt(prompt, adapters[row % len(adapters)]) for row, prompt in enumerate(prompts)]
        groups = sampler.sample(asked, [[seed] for seed in range(batch_size)], Parameters(num_tokens, frozenset()))
        return sum(len(sample.token_ids) for group in groups for sample in group)

    runs: dict[str, Run] = {
        "transformers": lambda: _generate(models.plain, token_ids_BT, num_tokens),
        "caesura": lambda: sample(None),
        "peft, 1 adapter": lambda: _generate(models.peft, token_ids_BT, num_tokens),
        "caesura, 1 adapter": lambda: sample(loaded[0]),
    }
    if batch_size >= NUM_ADAPTERS:
        runs["caesura, 8 adapters"] = lambda: sample(*loaded)
    ways = {"plain": F.linear, "packed": _packed}
    for way, multiply in ways.items():
        runs[way] = _matrices(models.plain, multiply, batch_size, num_tokens)
    rates = _measure(runs, num_rounds)
    limits = [rates.pop(way) for way in ways]
    return rates | {"matrices alone": max(limits, key=lambda rate: rate["tokens_s"])}


def _measure(runs: dict[str, Run], num_rounds: int) -> dict[str, dict[str, float]]:
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_number in range(num_rounds + 1):
        for name, run in runs.items():
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            num_made = run()
            wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
            if round_number:  # the first one warms up
                rates[name].append((num_made / wall_s, num_made / cpu_s))
    return {
        name: {
            "tokens_s": statistics.median(by_wall for by_wall, _ in measured),
            "tokens_cpu_s": statistics.median(by_cpu for _, by_cpu in measured),
        }
        for name, measured in rates.items()
    }


def _generate(model: Any, token_ids_BT: torch.Tensor, num_tokens: int) -> int:
    """As a user would, sampling from the whole distribution; no end token, so that all do the same work."""
    made = model.generate(
        input_ids=token_ids_BT,
        attention_mask=torch.ones_like(token_ids_BT),
        do_sample=True,
        top_k=0,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    return len(made) * num_tokens


def _packed(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")


def _matrices(model: Any, multiply: Callable[..., torch.Tensor], batch_size: int, num_tokens: int) -> Run:
    """The matrix products of the steps and nothing else; those with the same input as one, as few as there can be."""
    matrices = [torch.cat(weights) for weights in _weights_by_input(model)]
    inputs = {matrix.shape[1]: torch.randn(batch_size, matrix.shape[1]).to(matrix.dtype) for matrix in matrices}
    widths = [matrix.shape[1] for matrix in matrices]
    if multiply is _packed:
        matrices = [torch.ops.mkldnn._reorder_linear_weight(matrix) for matrix in matrices]

    @torch.inference_mode()
    def run() -> int:
        for _ in range(num_tokens):
            for width, matrix in zip(widths, matrices, strict=True):
                multiply(inputs[width], matrix)
        return batch_size * num_tokens

    return run


def _weights_by_input(model: Any) -> list[list[torch.Tensor]]:
    groups: list[list[torch.Tensor]] = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        modules = (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        )
        groups += [[module.weight.detach() for module in group] for group in modules]
    return [*groups, [model.lm_head.weight.detach()]]


if __name__ == "__main__":
    main()
