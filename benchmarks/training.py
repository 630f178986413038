"""Section 2: supervised training of the embedded base, beside TRL."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.limit import Limit
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.processes import run_program, say
from caesura.training.hyperparameters import base_learning_rate

Result = Mapping[str, float]

COLUMNS = (
    "contender",
    "tok/s",
    "vs defaults",
    "tok/CPU-s",
    "vs defaults",
    "CPU/wall",
    "of the limit",
    "real positions",
    "peak RSS MiB",
    "loss",
)
_GROUPED: dict[str, Any] = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """`program` is run with `arguments` beside those that all share."""

    name: str
    program: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


DEFAULTS = Contender("TRL SFTTrainer, defaults", "train_trl", {"set": {}})
BEST = (
    Contender("TRL, best settings, float32", "train_trl", {"set": {**_GROUPED, "bf16": False}}),
    Contender("TRL, best settings, bf16 autocast", "train_trl", {"set": {**_GROUPED, "bf16": True}}),
    Contender(
        "TRL, best settings, bf16 weights",
        "train_trl",
        {"set": {**_GROUPED, "bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}},
    ),
)
PRODUCT = Contender("Caesura", "train_caesura", {"dtype": "auto"})
FLOAT32 = Contender("Caesura, dtype float32", "train_caesura", {"dtype": "float32"})


def run(limit: Limit, options: Options) -> str:
    contenders = (DEFAULTS, BEST[1], PRODUCT) if options.quick else (DEFAULTS, *BEST, PRODUCT, FLOAT32)
    results = _measure(contenders, limit, options)
    of_limit = max(limit.tokens_s.values())
    rows = [_row(contender, results, of_limit) for contender in contenders]
    best = max((c for c in BEST if c in results), key=lambda contender: results[contender]["tokens_s"])
    return report.section(
        "Supervised training beside TRL",
        report.table(COLUMNS, rows),
        _explanation(options, results[DEFAULTS], best),
        _bars(results[PRODUCT], results[DEFAULTS], results[best]),
    )


def _measure(contenders: tuple[Contender, ...], limit: Limit, options: Options) -> dict[Contender, Result]:
    """The median of each figure over the rounds. Every round runs every contender once, so that a machine that
    slows down slows all of them; each round has a seed of its own, and so an order of its own of the same rows.
    """
    measured: dict[Contender, list[Result]] = {contender: [] for contender in contenders}
    with TemporaryDirectory() as folder:
        data = Path(folder) / "chats.jsonl"
        write_chats(data, make_chats(options.num_rows))
        for seed in range(1, options.rounds + 1):
            for contender in contenders:
                shared = {
                    "data": str(data),
                    "batch_size": BATCH_SIZE,
                    "threads": options.threads,
                    "num_warmup": options.num_warmup_steps,
                    "num_timed": options.num_timed_steps,
                    "seed": seed,
                    "learning_rate": base_learning_rate(limit.num_parameters),
                }
                result = run_program(contender.program, {**shared, **contender.arguments})
                say(f"round {seed}: {contender.name}: {result['tokens_s']:.0f} tok/s")
                measured[contender].append(result)
    learned = {result["num_learned"] for results in measured.values() for result in results}
    assert len(learned) == 1, f"the contenders do not learn the same tokens: {learned}"
    return {contender: _medians(of_rounds) for contender, of_rounds in measured.items()}


def _medians(results: list[Result]) -> Result:
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def _row(contender: Contender, results: Mapping[Contender, Result], of_limit: float) -> tuple[str, ...]:
    result, defaults = results[contender], results[DEFAULTS]
    return (
        contender.name,
        report.number(result["tokens_s"]),
        report.number(result["tokens_s"] / defaults["tokens_s"], 2),
        report.number(result["tokens_cpu_s"]),
        report.number(result["tokens_cpu_s"] / defaults["tokens_cpu_s"], 2),
        report.number(result["cpu_per_wall"], 2),
        f"{result['tokens_s'] / of_limit:.1%}",
        f"{result['real_share']:.0%}",
        report.number(result["peak_mib"]),
        report.number(result["loss"], 3),
    )


def _explanation(options: Options, any_result: Result, best: Contender) -> str:
    timed, warmup = options.num_timed_steps, options.num_warmup_steps
    return (
        f"Embedded base, LoRA r=16 alpha=32 on all linear layers, batch {BATCH_SIZE}, {options.num_rows} generated "
        f"chats (median 126 tokens, p90 350), loss on the same {any_result['num_learned']:,.0f} assistant tokens of an "
        f"epoch for all, the same learning rate and schedule, {options.threads} threads, GOMP_SPINCOUNT=5000. "
        f"Medians of {options.rounds} rounds, each contender in a process of its own, in turn; {timed} steps timed "
        f"after {warmup}. `tok/s`: tokens of the rows, padding not counted; `tok/CPU-s`: the same by the CPU time "
        "used, the steadier figure on a shared machine; `vs defaults`: the column before, by that of TRL's defaults; "
        "`CPU/wall`: cores kept busy; `of the limit`: tok/s by the best ideal tok/s above; `real positions`: share of "
        "the positions computed that are not padding; `loss`: mean over the timed steps (rows differ, so it says "
        "that all learn alike, no more). `defaults`: only batch size, rate, assistant_only_loss, save, report_to and "
        "use_cpu are set. `best settings`: gradient checkpointing off and length grouping on as well. `Caesura`: a "
        "job run by the worker's own code with its defaults, with the store, the metric events and the saves of "
        f"the training state. The best of TRL's best settings here: {best.name.removeprefix('TRL, best settings, ')}."
    )


def _bars(product: Result, defaults: Result, best: Result) -> str:
    return "\n".join(
        (
            _bar("at least 4 times TRL's defaults", product, defaults, 4),
            _bar("no slower than TRL's best settings", product, best, 1),
        )
    )


def _bar(claim: str, product: Result, other: Result, least: float) -> str:
    by_wall, by_cpu = (product[figure] / other[figure] for figure in ("tokens_s", "tokens_cpu_s"))
    return report.bar(f"{claim} ({by_wall:.2f} times by tok/s, {by_cpu:.2f} by tok/CPU-s)", by_wall >= least)
