"""Section 9: reinforcement beside TRL, on two models of random weights."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.chats import make_text
from benchmarks.contenders import Contender, Result, rate_bar, run_in_turn
from benchmarks.limit import Limit
from benchmarks.options import Options
from benchmarks.processes import run_program, say

COLUMNS = (
    "contender",
    "samples/s",
    "vs defaults",
    "samples/CPU-s",
    "vs defaults",
    "CPU/wall",
    "peak RSS MiB",
    "sampling",
    "grading",
    "training",
    "other",
)
#: Answers to a prompt, and tokens of an answer: random weights all but never end one by themselves.
NUM_SAMPLES, NUM_TOKENS = 8, 64
#: Prompts of a step for the best settings and for Caesura; TRL's default batch is one prompt's answers.
BATCH_SIZE = 4
NUM_WORDS = 20
#: Model → steps before the timed ones, and timed ones.
STEPS = {"small": (2, 10), "large": (1, 3)}
PARTS = ("sampling_share", "grading_share", "training_share", "other_share")
_LEAN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "per_device_train_batch_size": BATCH_SIZE * NUM_SAMPLES,
}
MIN_OF_DEFAULTS, MIN_OF_BEST = 2.5, 2.0


PRODUCT = Contender("Caesura", "reinforce_caesura", {"dtype": "auto"})


def run(limit: Limit, options: Options) -> str:
    sizes = ("small",) if options.quick else tuple(STEPS)
    has_bfloat16 = limit.gflops["bfloat16"] > limit.gflops["float32"]
    return "\n".join(_section(size, has_bfloat16, options) for size in sizes)


def _section(size: str, has_bfloat16: bool, options: Options) -> str:
    defaults, bests = _contenders(has_bfloat16)
    with TemporaryDirectory() as folder:
        made = run_program("random_model", {"size": size, "folder": f"{folder}/model"})
        results = _measure((defaults, *bests, PRODUCT), Path(folder), size, options)
    best = max(bests, key=lambda contender: results[contender]["tokens_s"])
    return report.section(
        f"Reinforcement beside TRL: {made['num_parameters'] / 1e6:.1f} million parameters",
        report.table(COLUMNS, [_row(contender, result, results[defaults]) for contender, result in results.items()]),
        _explanation(size, best, options),
        _bars(results, defaults, best),
    )


def _contenders(has_bfloat16: bool) -> tuple[Contender, list[Contender]]:
    """TRL's defaults, and the settings among which its best is."""
    if not has_bfloat16:
        off = {"bf16": False}
        return (
            Contender("TRL GRPOTrainer, defaults but bf16 off", "reinforce_trl", {"set": off}),
            [Contender("TRL, best settings, float32", "reinforce_trl", {"set": _LEAN | off})],
        )
    weights = {"model_init_kwargs": {"dtype": "bfloat16"}}
    return (
        Contender("TRL GRPOTrainer, defaults", "reinforce_trl", {"set": {}}),
        [
            Contender("TRL, best settings, float32", "reinforce_trl", {"set": _LEAN | {"bf16": False}}),
            Contender("TRL, best settings, bf16 weights", "reinforce_trl", {"set": _LEAN | {"bf16": True} | weights}),
        ],
    )


def _measure(contenders: tuple[Contender, ...], folder: Path, size: str, options: Options) -> dict[Contender, Result]:
    num_warmup, num_timed = (1, 2) if options.quick else STEPS[size]
    _write_prompts(folder / "prompts.jsonl", BATCH_SIZE * (num_warmup + num_timed + 1))

    def run(contender: Contender, seed: int) -> Result:
        shared = {
            "model": str(folder / "model"),
            "data": str(folder / "prompts.jsonl"),
            "batch_size": BATCH_SIZE,
            "num_samples": NUM_SAMPLES,
            "num_tokens": NUM_TOKENS,
            "num_warmup": num_warmup,
            "num_timed": num_timed,
            "threads": options.threads,
            "seed": seed,
        }
        result = run_program(contender.program, {**shared, **contender.arguments})
        say(f"{size}, round {seed}: {contender.name}: {result['tokens_s']:.1f} samples/s")
        return result

    return run_in_turn(contenders, options.rounds, run)[0]


def _write_prompts(path: Path, num_rows: int) -> None:
    generator = random.Random(1)
    rows = [{"messages": [{"role": "user", "content": make_text(generator, NUM_WORDS)}]} for _ in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(contender: Contender, result: Result, defaults: Result) -> tuple[str, ...]:
    return (
        contender.name,
        report.number(result["tokens_s"], 1),
        report.number(result["tokens_s"] / defaults["tokens_s"], 2),
        report.number(result["tokens_cpu_s"], 1),
        report.number(result["tokens_cpu_s"] / defaults["tokens_cpu_s"], 2),
        report.number(result["cpu_per_wall"], 2),
        report.number(result["peak_mib"]),
        *(f"{result[part]:.0%}" if part in result else "" for part in PARTS),
    )


def _explanation(size: str, best: Contender, options: Options) -> str:
    num_warmup, num_timed = (1, 2) if options.quick else STEPS[size]
    return (
        f"A Qwen 3 of random weights, LoRA r=16 alpha=32 on all linear layers; prompts of {NUM_WORDS} words, "
        f"{NUM_SAMPLES} answers of {NUM_TOKENS} tokens to each (all but none ends by itself), a trivial reward, one "
        f"update a batch, {options.threads} threads, GOMP_SPINCOUNT=5000. Medians of {options.rounds} rounds, each "
        f"contender in a process of its own, in turn; {num_timed} steps timed after {num_warmup}. `samples/s`: answers "
        "sampled, graded and learned from. `defaults`: steps of one prompt, as TRL's batch of 8 is one group; `best "
        f"settings` and `Caesura`: of {BATCH_SIZE} prompts, gradient checkpointing off. `Caesura`: a job run by the "
        "worker's own code, with the store, the events, every answer kept, and the saves; the last columns are the "
        "shares of its steps. The best of TRL's best settings here: "
        f"{best.name.removeprefix('TRL, best settings, ')}."
    )


def _bars(results: Mapping[Contender, Result], defaults: Contender, best: Contender) -> str:
    lines = [
        rate_bar("TRL's defaults", results[PRODUCT], results[defaults], MIN_OF_DEFAULTS, "samples"),
        rate_bar("TRL's best settings", results[PRODUCT], results[best], MIN_OF_BEST, "samples"),
    ]
    return "\n".join(lines)
