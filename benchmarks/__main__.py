"""Measure everything and print the report: `python -m benchmarks [--quick] [--rounds N] [--threads N] [--only …]`."""

from __future__ import annotations

import argparse
import os
import time

from benchmarks import (
    graders,
    inference,
    latency,
    limit,
    load,
    lora_layers,
    machine,
    preferences,
    rates,
    reinforcement,
    saves,
    soak,
    training,
    validation,
)
from benchmarks.options import Options
from benchmarks.processes import say

SECTIONS = (
    *("training", "latency", "rates", "lora_layers", "graders", "inference", "preferences", "reinforcement"),
    *("validation", "load", "soak", "saves"),
)


def main() -> None:
    options, wanted = _parse()
    began = time.monotonic()
    print(machine.run(options), flush=True)
    say("limit")
    the_limit = limit.measure(options)
    print(limit.run(the_limit, options), flush=True)
    sections = {
        "training": lambda: training.run(the_limit, options),
        "latency": lambda: latency.run(options),
        "rates": lambda: rates.run(options),
        "lora_layers": lambda: lora_layers.run(options),
        "graders": lambda: graders.run(options),
        "inference": lambda: inference.run(options),
        "preferences": lambda: preferences.run(the_limit, options),
        "reinforcement": lambda: reinforcement.run(the_limit, options),
        "load": lambda: load.run(options),
        "saves": lambda: saves.run(options),
        "soak": lambda: soak.run(options),
        "validation": lambda: validation.run(options),
    }
    for name in SECTIONS:
        if name in wanted:
            say(name)
            print(sections[name](), flush=True)
    say(f"done in {time.monotonic() - began:.0f} s")


def _parse() -> tuple[Options, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Caesura on this machine, beside TRL. The report goes to standard output, in Markdown.",
    )
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that everything works")
    parser.add_argument("--rounds", type=int, help="rounds of the training contenders [default: 3]")
    parser.add_argument("--threads", type=int, help="threads of everything that computes [default: the cores]")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="sections to measure")
    given = parser.parse_args()
    options = Options(
        quick=given.quick,
        rounds=given.rounds or (1 if given.quick else 3),
        threads=given.threads or len(os.sched_getaffinity(0)),
    )
    return options, given.only


if __name__ == "__main__":
    main()
