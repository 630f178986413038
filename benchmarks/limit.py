"""Section 1: what the machine allows, before anyone's program is measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import report
from benchmarks.options import Options
from benchmarks.processes import run_program

COLUMNS = ("arithmetic", "GFLOP/s", "ideal tok/s")


@dataclass(frozen=True, slots=True)
class Limit:
    """`tokens_s`: the ideal rate of LoRA training of the embedded base, by arithmetic."""

    gflops: dict[str, float]
    num_parameters: int
    num_lora_parameters: int

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor multiplies it natively."""
        return self.gflops["bfloat16"] > self.gflops["float32"]

    @property
    def flop_per_token(self) -> int:
        return 4 * self.num_parameters + 6 * self.num_lora_parameters

    @property
    def tokens_s(self) -> dict[str, float]:
        return {name: gflops * 1e9 / self.flop_per_token for name, gflops in self.gflops.items()}


def measure(options: Options) -> Limit:
    return Limit(**run_program("matmul", {"threads": options.threads, "seconds": 0.2 if options.quick else 2.0}))


def run(limit: Limit, options: Options) -> str:
    rows = [
        (name, report.number(limit.gflops[name]), report.number(limit.tokens_s[name]))
        for name in ("float32", "bfloat16")
    ]
    explained = (
        f"`GFLOP/s`: the best that matrix products reach with {options.threads} threads. `ideal tok/s`: that rate over "
        f"4·N + 6·L = {limit.flop_per_token / 1e6:.1f} MFLOP a token, the matrix products of LoRA training and nothing "
        f"else: N = {limit.num_parameters:,} frozen weights (2 forward, 2 for the gradient of what goes in), "
        f"L = {limit.num_lora_parameters:,} of the adapter (2 more for its own gradient)."
    )
    return report.section("The limit", report.table(COLUMNS, rows), explained)
