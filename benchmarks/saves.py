"""Section 12: what saving the training state takes from the steps, at the default interval."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.processes import run_program, say
from caesura.settings import Settings

SECONDS = 60.0
BAR = 0.01
COLUMNS = ("base", "steps/s", "state MB", "saves", "step held up ms", "share of the steps", "save ms", "its CPU ms")


def run(options: Options) -> str:
    rows: list[tuple[str, ...]] = []
    shares: list[float] = []
    with TemporaryDirectory() as folder:
        data = Path(folder) / "chats.jsonl"
        write_chats(data, make_chats(options.num_rows))
        large = str(Path(folder) / "large")
        run_program("random_model", {"size": "large", "folder": large})
        for name, model in (("embedded, 4.2 M", None), ("random, 79 M", large)):
            asked: dict[str, Any] = {
                "model": model,
                "data": str(data),
                "threads": options.threads,
                "batch_size": BATCH_SIZE,
                "seed": 1,
                "seconds": 12.0 if options.quick else SECONDS,
            }
            told = run_program("saves", asked)
            share = told["held_up_s"] / told["steps_s"]
            say(f"{name}: {share:.3%}")
            shares.append(share)
            rows.append(_row(name, told, share))
    interval_s = Settings.model_fields["save_interval_s"].default
    return report.section(
        "Saves",
        report.table(COLUMNS, rows),
        f"A supervised job (LoRA, batch {BATCH_SIZE}) by the worker's own code for {SECONDS:.0f} s, saved every "
        f"{interval_s:.0f} s. `step held up`: what a save holds the steps up by, the copy of the state; the rest is "
        "done by a thread beside them, which takes `save ms` with its syncs, and `its CPU ms` from cores that the "
        "steps would use.",
        report.bar(
            f"at most {BAR:.0%} of the steps' time ({max(shares):.2%} at most)",
            max(shares) <= BAR,
        ),
    )


def _row(name: str, told: dict[str, Any], share: float) -> tuple[str, ...]:
    return (
        name,
        report.number(told["num_steps"] / told["steps_s"], 1),
        report.number(told["num_bytes"] / 1e6, 1),
        str(told["num_saves"]),
        report.number(told["held_up_s"] / told["num_saves"] * 1e3, 1),
        f"{share:.2%}",
        report.number(told["save_s"] * 1e3, 0),
        report.number(told["save_cpu_s"] * 1e3, 0),
    )
