"""What runs side by side: programs with arguments, in turn, each in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import report

Result = Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """`program` is run with `arguments` beside those that all share."""

    name: str
    program: str
    arguments: dict[str, Any]


def run_in_turn(
    contenders: Sequence[Contender], num_rounds: int, run: Callable[[Contender, int], Result]
) -> tuple[dict[Contender, Result], list[Result]]:
    """The median of each figure over the rounds, and all results. A round runs every contender once, with its number
    as the seed."""
    measured: dict[Contender, list[Result]] = {contender: [] for contender in contenders}
    for seed in range(1, num_rounds + 1):
        for contender in contenders:
            measured[contender].append(run(contender, seed))
    medians = {
        contender: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for contender, results in measured.items()
    }
    return medians, [result for results in measured.values() for result in results]


def trl_contenders(trainer: str, program: str, lean: Mapping[str, Any], has_bfloat16: bool) -> list[Contender]:
    """TRL's defaults, and then the settings among which its best is: those of `lean`, in each arithmetic. Without
    instructions for it bfloat16 is computed in float32, piece by piece: nobody would choose it."""
    float32, bfloat16 = {"bf16": False}, {"bf16": True}
    if not has_bfloat16:
        return [
            Contender(f"TRL {trainer}, defaults but bf16 off", program, {"set": float32}),
            Contender("TRL, best settings, float32", program, {"set": {**lean, **float32}}),
        ]
    weights = {"model_init_kwargs": {"dtype": "bfloat16"}}
    return [
        Contender(f"TRL {trainer}, defaults", program, {"set": {}}),
        Contender("TRL, best settings, float32", program, {"set": {**lean, **float32}}),
        Contender("TRL, best settings, bf16 autocast", program, {"set": {**lean, **bfloat16}}),
        Contender("TRL, best settings, bf16 weights", program, {"set": {**lean, **bfloat16, **weights}}),
    ]


def rate_bar(of: str, product: Result, other: Result, least: float, unit: str) -> str:
    """Whether the product's rate, in `unit` a second of CPU time, is at least so many times the other's."""
    by_wall, by_cpu = (product[figure] / other[figure] for figure in ("tokens_s", "tokens_cpu_s"))
    claim = f"at least {least:g} times {of} ({by_wall:.2f} times by {unit}/s, {by_cpu:.2f} by {unit}/CPU-s)"
    return report.bar(claim, by_cpu >= least)
