"""Section 5: our LoRA layers beside PEFT's. Also on its own: `python -m benchmarks.lora_layers`."""

from __future__ import annotations

import os

from benchmarks import report
from benchmarks.options import Options
from benchmarks.processes import run_program

COLUMNS = ("arithmetic", "Caesura's layers, ms", "PEFT's layers, ms", "PEFT / Caesura")
NUM_ROUNDS = 12


def run(options: Options) -> str:
    num_rounds = 1 if options.quick else NUM_ROUNDS
    result = run_program("lora_layers", {"threads": options.threads, "rounds": num_rounds})
    rows = [
        (
            dtype,
            report.number(result[dtype]["ours"] * 1e3),
            report.number(result[dtype]["peft"] * 1e3),
            report.number(result[dtype]["ratio"], 3),
        )
        for dtype in ("float32", "bfloat16")
    ]
    explained = (
        f"Three training steps (8 short, 8 median, 8 long rows) of the embedded base with {options.threads} threads, "
        f"in one process and in turn; medians of {num_rounds} rounds. `PEFT / Caesura`: the median of the rounds' "
        "ratios. Everything but the layers is the product's own step. In bfloat16 PEFT's layers compute the adapter "
        "in float32 (its default), ours in bfloat16; the weights of the adapter are float32 in both."
    )
    dearer = all(result[dtype]["ratio"] > 1.05 for dtype in ("float32", "bfloat16"))
    return report.section(
        "LoRA layers beside PEFT's",
        report.table(COLUMNS, rows),
        explained,
        report.bar("PEFT's layers cost more than 5 % of a step", dearer),
    )


if __name__ == "__main__":
    print(run(Options(quick=False, rounds=1, threads=len(os.sched_getaffinity(0)))))
