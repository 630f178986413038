"""Section 2: supervised training beside TRL, of adapters and of all weights, on two models of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.contenders import Contender, Result, rate_bar, run_in_turn, trl_contenders
from benchmarks.limit import Limit
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.processes import run_program, say
from caesura.training.hyperparameters import FULL_RATE_SHARE, base_learning_rate

COLUMNS = (
    "contender",
    "tok/s",
    "tok/CPU-s",
    "vs defaults",
    "vs best",
    "CPU/wall",
    "of the limit",
    "real positions",
    "peak RSS MiB",
    "loss",
)
#: Model → rows of its training file. Every contender trains on all of them, so that lengths weigh alike.
NUM_ROWS = {"small": 320, "large": 32}
_LEAN: dict[str, Any] = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
MAX_OVERHEAD = 0.05
MAX_MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Bars:
    """At least so many times the rate of TRL's defaults, and of its best settings."""

    defaults: float
    best: float


BARS = {
    ("small", "lora"): Bars(4.5, 1.5),
    ("large", "lora"): Bars(4.5, 1.3),
    ("small", "full"): Bars(5.0, 1.5),
    ("large", "full"): Bars(5.0, 1.5),
}
PRODUCT = Contender("Caesura", "train_caesura", {"dtype": "auto"})
BARE = Contender("its passes alone", "train_bare", {"dtype": "auto"})
_KINDS = {"lora": "LoRA r=16 alpha=32 on all linear layers", "full": "all weights"}


def run(limit: Limit, options: Options) -> str:
    asked = [("small", "lora")] if options.quick else list(BARS)
    return "\n".join(_section(size, kind, limit, options) for size, kind in asked)


def _section(size: str, kind: str, limit: Limit, options: Options) -> str:
    defaults, *bests = trl_contenders("SFTTrainer", "train_trl", _LEAN, limit.has_bfloat16)
    with TemporaryDirectory() as folder:
        made = run_program("random_model", {"size": size, "folder": f"{folder}/model"})
        rate = base_learning_rate(int(made["num_parameters"])) * (FULL_RATE_SHARE if kind == "full" else 1.0)
        results = _measure((defaults, *bests, PRODUCT, BARE), Path(folder), size, kind, rate, options)
    best = max(bests, key=lambda contender: results[contender]["tokens_cpu_s"])
    flop_per_token = 4 * made["num_parameters"] + 6 * made["num_lora_parameters"]
    if kind == "full":
        flop_per_token = 6 * made["num_parameters"]
    ideal_tokens_s = max(limit.gflops.values()) * 1e9 / flop_per_token
    rows = [
        _row(contender, result, results[defaults], results[best], ideal_tokens_s)
        for contender, result in results.items()
    ]
    return report.section(
        f"Supervised training beside TRL: {made['num_parameters'] / 1e6:.1f} million parameters, {_KINDS[kind]}",
        report.table(COLUMNS, rows),
        _explanation(size, kind, ideal_tokens_s, results[defaults], best, options),
        _bars(BARS[size, kind], results, defaults, best),
    )


def _measure(
    contenders: tuple[Contender, ...], folder: Path, size: str, kind: str, learning_rate: float, options: Options
) -> dict[Contender, Result]:
    num_rows = _num_rows(size, options)
    write_chats(folder / "chats.jsonl", make_chats(num_rows))

    def run(contender: Contender, seed: int) -> Result:
        shared = {
            "model": str(folder / "model"),
            "data": str(folder / "chats.jsonl"),
            "type": kind,
            "batch_size": BATCH_SIZE,
            "num_steps": num_rows // BATCH_SIZE,
            "threads": options.threads,
            "seed": seed,
            "learning_rate": learning_rate,
        }
        result = run_program(contender.program, {**shared, **contender.arguments})
        say(f"{size}, {kind}, round {seed}: {contender.name}: {result['tokens_cpu_s']:.0f} tok/CPU-s")
        return result

    medians, results = run_in_turn(contenders, options.rounds, run)
    learned = {result["num_learned"] for result in results}
    assert len(learned) == 1, f"the contenders do not learn the same tokens: {learned}"
    return medians


def _num_rows(size: str, options: Options) -> int:
    return 4 * BATCH_SIZE if options.quick else NUM_ROWS[size]


def _row(
    contender: Contender, result: Result, defaults: Result, best: Result, ideal_tokens_s: float
) -> tuple[str, ...]:
    return (
        contender.name,
        report.number(result["tokens_s"]),
        report.number(result["tokens_cpu_s"]),
        report.number(result["tokens_cpu_s"] / defaults["tokens_cpu_s"], 2),
        report.number(result["tokens_cpu_s"] / best["tokens_cpu_s"], 2),
        report.number(result["cpu_per_wall"], 2),
        f"{result['tokens_s'] / ideal_tokens_s:.1%}",
        f"{result['real_share']:.0%}",
        report.number(result["peak_mib"]),
        report.number(result["loss"], 3),
    )


def _explanation(
    size: str, kind: str, ideal_tokens_s: float, any_result: Result, best: Contender, options: Options
) -> str:
    num_rows = _num_rows(size, options)
    flop = "6 FLOP a weight" if kind == "full" else "4 FLOP a weight and 6 a weight of the adapter"
    return (
        f"A Qwen 3 of random weights, {_KINDS[kind]}, one epoch of {num_rows} generated chats (median 126 tokens, p90 "
        f"350) in batches of {BATCH_SIZE}, loss on the same {any_result['num_learned']:,.0f} assistant tokens for all, "
        f"the same learning rate and schedule, {options.threads} threads, GOMP_SPINCOUNT=5000. Medians of "
        f"{options.rounds} rounds, each contender in a process of its own, in turn. `tok/s`: tokens of the rows, "
        "padding not counted, from the beginning of the training to the end of its last step; `tok/CPU-s`: the same "
        "by the CPU time used, the steadier figure on a shared machine, which the next two columns compare; `of the "
        f"limit`: tok/s by {ideal_tokens_s:,.0f}, what the best matrix product above would give at {flop}; `real "
        "positions`: share of the positions computed that are not padding; `loss`: mean over the steps (the order of "
        "rows differs, so it says that all learn alike, no more). `best settings`: gradient checkpointing off and "
        "length grouping on. `Caesura`: a job run by the worker's own code with its defaults, with the store, the "
        "metric events and the saves; `its passes alone`: the same batches, made before, with nothing around forward, "
        "backward and optimizer. The best of TRL's best settings here: "
        f"{best.name.removeprefix('TRL, best settings, ')}."
    )


def _bars(bars: Bars, results: Mapping[Contender, Result], defaults: Contender, best: Contender) -> str:
    product = results[PRODUCT]
    overhead = results[BARE]["tokens_cpu_s"] / product["tokens_cpu_s"] - 1
    memory_share = product["peak_mib"] / results[best]["peak_mib"]
    return "\n".join(
        (
            rate_bar("TRL's defaults", product, results[defaults], bars.defaults, "tok"),
            rate_bar("TRL's best settings", product, results[best], bars.best, "tok"),
            report.bar(
                f"at most half the peak memory of TRL's best settings ({memory_share:.0%})",
                memory_share <= MAX_MEMORY_SHARE,
            ),
            report.bar(
                f"at most 5 % of CPU time around the passes ({overhead:.1%})",
                overhead <= MAX_OVERHEAD,
            ),
        )
    )
