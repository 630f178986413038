"""Section 6: graders. Python ones through the sandbox, the others in the process, and all of it through the API."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, get_args

from benchmarks import report
from benchmarks.options import Options
from benchmarks.processes import say
from benchmarks.rates import Call, load
from benchmarks.server import running_server
from caesura.graders.comparer import Comparer
from caesura.graders.grade import Grader, grade, observe_text
from caesura.graders.python import PythonGrader
from caesura.graders.sandbox import Level, Sandbox, find_level
from caesura.graders.similarity import Metric
from caesura.graders.string_check import OPERATIONS, StringCheckGrader
from caesura.graders.template import parse_template
from caesura.graders.text_similarity import TextSimilarityGrader

NUM_ROLLOUTS = 512
#: What a new process per call would be, after the interpreter's start.
EMPTY = "pass"
PYTHON = {
    "standard library": """
import json, re
def grade(sample, item):
    words = re.findall(r"[a-z]+", sample["output_text"].lower())
    return sum(word in item["words"] for word in words) / len(words)
""",
    "numpy": """
import numpy as np
def grade(sample, item):
    values = np.array([len(word) for word in sample["output_text"].split()])
    return float(values.mean() / values.max())
""",
    "numpy, pandas, scipy": """
import numpy as np, pandas as pd
from scipy import stats
def grade(sample, item):
    frame = pd.DataFrame({"length": [len(word) for word in sample["output_text"].split()]})
    return float(np.clip(stats.zscore(frame["length"]).max() / 10, 0, 1))
""",
}
PRELOADS = {
    "standard library": "",
    "numpy": "import numpy",
    "numpy, pandas, scipy": "import numpy, pandas, scipy.stats",
}
TEXT = "The quick brown fox jumps over the lazy dog, and the old cat sleeps on a warm stone wall. " * 3
REFERENCE = "A quick fox jumped over that lazy dog while an old cat was asleep upon the warm wall of stone. " * 3
OBSERVATION = observe_text(TEXT, {"words": ["the", "fox", "cat"], "reference": REFERENCE})
#: Forks, and waits for, children that end at once: what a design with a fork per call cannot beat.
FORKS = """
import gc, os, sys, time
{preload}
gc.freeze()
end = time.perf_counter() + float(sys.argv[1])
began, number = time.perf_counter(), 0
while time.perf_counter() < end:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    number += 1
print(number / (time.perf_counter() - began))
"""


@dataclass(frozen=True, slots=True)
class Rate:
    per_s: float
    p50_ms: float


def run(options: Options) -> str:
    seconds = 0.3 if options.quick else 3.0
    return "\n".join((_python(options, seconds), _in_process(seconds), _through_the_api(seconds)))


def _python(options: Options, seconds: float) -> str:
    best = find_level()
    levels = {Level.STRONG: (Level.STRONG, Level.KERNEL), Level.KERNEL: (Level.KERNEL,), Level.NONE: ()}[best]
    rows: list[tuple[str, ...]] = []
    measured: dict[tuple[str, Level], tuple[Rate, Rate, float]] = {}
    for name, source in PYTHON.items():
        floor = _forks_per_s(PRELOADS[name], seconds)
        for level in levels:
            found = asyncio.run(_measure_sandbox(source, level, options.threads, seconds))
            measured[name, level] = found
            one, many, rollouts_s = found
            say(f"{name}, {level}: {one.per_s:.0f}/s")
            rows.append(
                (
                    *(f"{name}, `{level}`", report.number(one.per_s), report.number(one.p50_ms, 1)),
                    *(report.number(many.per_s), report.number(rollouts_s, 2), report.number(floor)),
                    f"{one.per_s / floor:.0%}",
                )
            )
    a_process = _processes_per_s(seconds)
    columns = ("grader, level", "1 at once: calls/s", "p50 ms", f"{options.threads} at once: calls/s")
    standard, numpy = measured["standard library", best], measured["numpy", best]
    return report.section(
        "Python graders",
        report.table((*columns, f"{NUM_ROLLOUTS} rollouts, s", "bare forks/s", "of them"), rows),
        f"`bare forks/s`: children that end at once, forked one after the other by a process that has imported the "
        f"same: the limit of a fork per call. `of them`: calls/s one at a time, by that. `{NUM_ROLLOUTS} rollouts`: "
        f"graded together, {options.threads} at once. For comparison, a new Python process per call, without any jail "
        f"and without imports: {report.number(a_process)}/s.",
        "\n".join(
            (
                report.bar(f"at least 350 calls/s per core ({standard[0].per_s:.0f})", standard[0].per_s >= 350),
                report.bar(f"at least 200 calls/s per core with numpy ({numpy[0].per_s:.0f})", numpy[0].per_s >= 200),
                report.bar(f"{NUM_ROLLOUTS} rollouts in under 2 s ({standard[2]:.2f} s)", standard[2] < 2),
            )
        ),
    )


async def _measure_sandbox(source: str, level: Level, num_workers: int, seconds: float) -> tuple[Rate, Rate, float]:
    """One call at a time, `num_workers` at once, and the seconds that all rollouts take."""
    one = await _with_sandbox(source, level, 1, lambda grader: _rate(grader, 1, seconds))
    many = await _with_sandbox(source, level, num_workers, lambda grader: _rate(grader, num_workers, seconds))
    rollouts_s = await _with_sandbox(source, level, num_workers, _grade_rollouts)
    return one, many, rollouts_s


async def _with_sandbox(
    source: str, level: Level, num_workers: int, measure: Callable[[Grader], Awaitable[Any]]
) -> Any:
    sandbox = Sandbox(level, num_workers=num_workers)
    try:
        grader = PythonGrader("benchmark", source, sandbox)
        first = await grade(grader, OBSERVATION)  # the zygote starts
        assert not first.score.faults, first.score.faults
        return await measure(grader)
    finally:
        await sandbox.close()


async def _rate(grader: Grader, num_at_once: int, seconds: float) -> Rate:
    end = time.perf_counter() + seconds
    latencies_s: list[float] = []

    async def client() -> None:
        while time.perf_counter() < end:
            graded = await grade(grader, OBSERVATION)
            assert not graded.score.faults, graded.score.faults
            latencies_s.append(graded.execution_time_s)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_at_once)))
    return Rate(len(latencies_s) / (time.perf_counter() - began), statistics.median(latencies_s) * 1e3)


async def _grade_rollouts(grader: Grader) -> float:
    began = time.perf_counter()
    grades = await asyncio.gather(*(grade(grader, OBSERVATION) for _ in range(NUM_ROLLOUTS)))
    assert not any(graded.score.faults for graded in grades)
    return time.perf_counter() - began


def _forks_per_s(preload: str, seconds: float) -> float:
    command = [sys.executable, "-c", FORKS.format(preload=preload), str(seconds)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def _processes_per_s(seconds: float) -> float:
    began, number = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        subprocess.run([sys.executable, "-I", "-S", "-c", EMPTY], check=True)
        number += 1
    return number / (time.perf_counter() - began)


def _in_process(seconds: float) -> str:
    text, reference = parse_template("{{ sample.output_text }}", "p"), parse_template("{{ item.reference }}", "p")
    check = StringCheckGrader("check", text, reference, OPERATIONS["eq"])

    async def measure() -> dict[str, Rate]:
        comparer = Comparer()
        graders: dict[str, Grader] = {"string_check": check}
        graders |= {
            f"text_similarity, {metric}": TextSimilarityGrader("alike", text, reference, metric, comparer)
            for metric in get_args(Metric)
        }
        rates: dict[str, Rate] = {}
        for name, grader in graders.items():
            await grade(grader, OBSERVATION)
            rates[name] = await _rate(grader, 1, seconds / 3)
        await comparer.close()
        return rates

    rates = asyncio.run(measure())
    rows = [(name, report.number(rate.per_s), report.number(rate.p50_ms, 3)) for name, rate in rates.items()]
    num_words = len(TEXT.split())
    return report.section(
        "The other graders",
        report.table(("grader", "calls/s", "p50 ms"), rows),
        f"Two texts of some {num_words} words, templates and all, one after the other. string_check runs in the "
        "process; texts are compared in a process of their own, which takes a part of the time of the fast metrics.",
        report.bar(
            f"string_check at least 100,000/s ({rates['string_check'].per_s:,.0f})", rates["string_check"].per_s >= 1e5
        ),
    )


def _through_the_api(seconds: float) -> str:
    check = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "x", "operation": "ne"}
    graders = {
        "string_check": check,
        "python, standard library": {"type": "python", "source": PYTHON["standard library"]},
        "python, numpy": {"type": "python", "source": PYTHON["numpy"]},
    }
    rows: list[tuple[str, ...]] = []
    medians: dict[str, float] = {}
    with running_server(warm_spare="false") as server:
        for name, grader in graders.items():
            body = json.dumps({"grader": grader, "item": {"words": ["the"]}, "model_sample": TEXT})
            call = Call(name, "POST", "/fine_tuning/alpha/graders/run", body)
            load(server, call, 1, 0.2)
            rate = load(server, call, 1, seconds)
            medians[name] = rate.p50_ms
            rows.append((name, report.number(rate.p50_ms, 1), report.number(rate.p99_ms, 1), report.number(rate.per_s)))
    warm_ms = medians["python, standard library"]
    return report.section(
        "`POST /v1/fine_tuning/alpha/graders/run`",
        report.table(("grader", "p50 ms", "p99 ms", "req/s"), rows),
        "One connection, one request after the other; the server has just graded by the same grader.",
        report.bar(f"a warm Python grader under 10 ms at the median ({warm_ms:.1f} ms)", warm_ms < 10),
    )
