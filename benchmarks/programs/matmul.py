"""The machine's best rate of matrix products, and the size of the embedded base."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from benchmarks.programs import arguments, finish
from caesura.models.loading import load_base
from caesura.models.lora import add_lora, in_out_features
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, BaseModelSettings
from caesura.training.adapters import LORA_RANK

#: Tokens, inputs, outputs: a large square, a layer of the embedded base, and one between them.
SHAPES = ((2048, 2048, 2048), (1024, 256, 704), (1024, 1024, 1024))


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked["threads"])
    gflops = {
        name: max(_gflops(*shape, dtype, asked["seconds"]) for shape in SHAPES)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    base = load_base(EMBEDDED_BASE, BaseModelSettings(path=str(EMBEDDED_BASE_PATH)), torch.float32, torch.device("cpu"))
    num_lora = sum(LORA_RANK * sum(in_out_features(layer.base)) for layer in add_lora(base.model).values())
    finish({"gflops": gflops, "num_parameters": base.num_parameters, "num_lora_parameters": num_lora})


@torch.no_grad()
def _gflops(num_tokens: int, num_in: int, num_out: int, dtype: torch.dtype, seconds: float) -> float:
    """The best of many tries within so many seconds: a limit is what the machine can do, not what it mostly does."""
    x = torch.randn(num_tokens, num_in, dtype=dtype)
    weight = torch.randn(num_out, num_in, dtype=dtype)
    flop = 2 * num_tokens * num_in * num_out
    num_inner = max(1, 1_000_000_000 // flop)
    best_s, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(num_inner):
            F.linear(x, weight)
        best_s = min(best_s, (time.perf_counter() - began) / num_inner)
    return flop / best_s / 1e9


if __name__ == "__main__":
    main()
