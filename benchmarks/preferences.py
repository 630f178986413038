"""Section 8: DPO beside TRL, on two models of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.contenders import Contender, Result, rate_bar, run_in_turn, trl_contenders
from benchmarks.limit import Limit
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.pairs import make_pairs, write_pairs
from benchmarks.processes import run_program, say
from caesura.training.hyperparameters import PREFERENCE_RATE_SHARE, base_learning_rate

COLUMNS = (
    "contender",
    "tok/s",
    "vs defaults",
    "tok/CPU-s",
    "vs defaults",
    "last epoch: tok/s",
    "first step s",
    "CPU/wall",
    "real positions",
    "peak RSS MiB",
    "loss",
)
NUM_EPOCHS = 3
#: Model → pairs of its training file.
NUM_PAIRS = {"small": 64, "large": 16}
_LEAN: dict[str, Any] = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}


@dataclass(frozen=True, slots=True)
class Bars:
    """At least so many times the rate of TRL's defaults, and of its best settings; None: no such bar."""

    defaults: float
    best: float | None


BARS = {"small": Bars(5.0, 4.0), "large": Bars(3.5, None)}
PRODUCT = Contender("Caesura", "prefer_caesura", {"dtype": "auto"})


def run(limit: Limit, options: Options) -> str:
    sizes = ("small",) if options.quick else tuple(NUM_PAIRS)
    return "\n".join(_section(size, limit.has_bfloat16, options) for size in sizes)


def _section(size: str, has_bfloat16: bool, options: Options) -> str:
    defaults, *bests = trl_contenders("DPOTrainer", "prefer_trl", _LEAN, has_bfloat16)
    with TemporaryDirectory() as folder:
        made = run_program("random_model", {"size": size, "folder": f"{folder}/model"})
        results = _measure((defaults, *bests, PRODUCT), Path(folder), size, int(made["num_parameters"]), options)
    best = max(bests, key=lambda contender: results[contender]["tokens_s"])
    return report.section(
        f"DPO beside TRL: {made['num_parameters'] / 1e6:.1f} million parameters",
        report.table(COLUMNS, [_row(contender, result, results[defaults]) for contender, result in results.items()]),
        _explanation(size, results[defaults], best, options),
        _bars(BARS[size], results, defaults, best),
    )


def _measure(
    contenders: tuple[Contender, ...], folder: Path, size: str, num_parameters: int, options: Options
) -> dict[Contender, Result]:
    num_pairs = 2 * BATCH_SIZE if options.quick else NUM_PAIRS[size]
    write_pairs(folder / "pairs.jsonl", make_pairs(num_pairs))

    def run(contender: Contender, seed: int) -> Result:
        shared = {
            "model": str(folder / "model"),
            "data": str(folder / "pairs.jsonl"),
            "batch_size": BATCH_SIZE,
            "num_epochs": NUM_EPOCHS,
            "steps_per_epoch": num_pairs // BATCH_SIZE,
            "threads": options.threads,
            "seed": seed,
            "learning_rate": base_learning_rate(num_parameters) * PREFERENCE_RATE_SHARE,
        }
        result = run_program(contender.program, {**shared, **contender.arguments})
        say(f"{size}, round {seed}: {contender.name}: {result['tokens_s']:.0f} tok/s")
        return result

    medians, results = run_in_turn(contenders, options.rounds, run)
    learned = {result["num_learned"] for result in results}
    assert len(learned) == 1, f"the contenders do not compare the same tokens: {learned}"
    return medians


def _row(contender: Contender, result: Result, defaults: Result) -> tuple[str, ...]:
    return (
        contender.name,
        report.number(result["tokens_s"]),
        report.number(result["tokens_s"] / defaults["tokens_s"], 2),
        report.number(result["tokens_cpu_s"]),
        report.number(result["tokens_cpu_s"] / defaults["tokens_cpu_s"], 2),
        report.number(result["last_epoch_s"]),
        report.number(result["first_step_s"], 1),
        report.number(result["cpu_per_wall"], 2),
        f"{result['real_share']:.0%}",
        report.number(result["peak_mib"]),
        report.number(result["loss"], 3),
    )


def _explanation(size: str, any_result: Result, best: Contender, options: Options) -> str:
    num_pairs = 2 * BATCH_SIZE if options.quick else NUM_PAIRS[size]
    return (
        f"A Qwen 3 of random weights, LoRA r=16 alpha=32 on all linear layers, beta 0.1, {NUM_EPOCHS} epochs of "
        f"{num_pairs} generated pairs in batches of {BATCH_SIZE}, the same {any_result['num_learned']:,.0f} compared "
        f"tokens of an epoch and the same rate for all, {options.threads} threads, GOMP_SPINCOUNT=5000. Medians of "
        f"{options.rounds} rounds, each contender in a process of its own, in turn. `tok/s`: tokens of both answers, "
        "each with the prompt, whoever computes it once, over all steps of the job; what the reference says is part of "
        "it, computed in every step, before the first, or when a pair first comes up, so that three epochs share it as "
        "they do in a job whose epochs are `auto`. Imports, loading and tokenizing are not part of it. `last epoch`: "
        "the same where the reference is known. `first step s`: from the beginning of the training, the pass over the "
        "reference included. `real positions`: share of the positions computed that are not padding. `best settings`: "
        "gradient checkpointing off and precompute_ref_log_probs on. `Caesura`: a job run by the worker's own code "
        "with its defaults, with the store, the metric events and the saves. The best of TRL's best settings here: "
        f"{best.name.removeprefix('TRL, best settings, ')}."
    )


def _bars(bars: Bars, results: Mapping[Contender, Result], defaults: Contender, best: Contender) -> str:
    product = results[PRODUCT]
    lines = [rate_bar("TRL's defaults", product, results[defaults], bars.defaults, "tok")]
    if bars.best is not None:
        lines.append(rate_bar("TRL's best settings", product, results[best], bars.best, "tok"))
    least_mib = min(result["peak_mib"] for contender, result in results.items() if contender is not PRODUCT)
    lines.append(
        report.bar(f"no more memory than TRL's least ({least_mib:,.0f} MiB)", product["peak_mib"] <= least_mib)
    )
    return "\n".join(lines)
