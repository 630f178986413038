"""Section 7: how fast answers are made, beside transformers and PEFT, and how long a client waits for one to begin."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks import report
from benchmarks.options import Options
from benchmarks.processes import run_program, say
from benchmarks.server import RunningServer, running_server
from caesura.ids import new_id, new_token
from caesura.inference.process import ENGINE_ENVIRONMENT
from caesura.jobs import Job, Status
from caesura.settings import EMBEDDED_BASE
from caesura.storage import LocalStorage, put_files
from caesura.store import open_store
from caesura.store.files import new_file

BATCH_SIZES = (1, 8, 32)
#: Model and arithmetic → what they are called.
KINDS = {
    ("embedded", "float32"): "the embedded base",
    ("embedded", "bfloat16"): "the embedded base in bfloat16",
    ("medium", "float32"): "a Llama of random weights",
}
NUM_TOKENS = 64
#: Clients that ask at the same time, each of them again and again.
NUM_CLIENTS = 16
NUM_TUNED = 16
ANSWER_TOKENS = 48
#: Of the bars: at least so many times transformers' (or PEFT's) rate, by batch size.
BARS = {1: 1.5, 8: 2.0, 32: 2.0}
MIXED_BAR, FIRST_TOKEN_BAR_S = 0.8, 0.5

COLUMNS = (
    "contender",
    *(f"batch {size}: tok/s" for size in BATCH_SIZES),
    *(f"ratio at {size}" for size in BATCH_SIZES),
)
#: Each contender, and the one it is measured by.
CONTENDERS = {
    "transformers": "transformers",
    "caesura": "transformers",
    "peft, 1 adapter": "peft, 1 adapter",
    "caesura, 1 adapter": "peft, 1 adapter",
    "caesura, 8 adapters": "caesura, 1 adapter",
    "matrices alone": "caesura",
}
NAMES = {
    "transformers": "transformers `generate`",
    "caesura": "Caesura",
    "peft, 1 adapter": "PEFT `generate`, one adapter",
    "caesura, 1 adapter": "Caesura, one adapter",
    "caesura, 8 adapters": "Caesura, eight adapters",
    "matrices alone": "the limit: matrix products alone",
}

Results = Mapping[str, Mapping[str, Mapping[str, float]]]


def run(options: Options) -> str:
    kinds = list(KINDS)[:1] if options.quick else list(KINDS)
    return "\n".join([*(_rates(*kind, _measure(*kind, options), options) for kind in kinds), _waits(options)])


def _measure(model: str, dtype: str, options: Options) -> Any:
    say(f"decoding: {KINDS[model, dtype]}")
    return run_program(
        "decode",
        {
            "threads": options.threads,
            "model": model,
            "dtype": dtype,
            "batch_sizes": BATCH_SIZES,
            "num_tokens": 16 if options.quick else NUM_TOKENS,
            "rounds": options.rounds,
        },
        **ENGINE_ENVIRONMENT,
    )


def _rates(model: str, dtype: str, results: Any, options: Options) -> str:
    by_size: Results = {str(size): results[str(size)] for size in BATCH_SIZES}
    rows = [
        (
            NAMES[contender],
            *(_rate(by_size[str(size)], contender) for size in BATCH_SIZES),
            *(_ratio_text(by_size[str(size)], contender, measure) for size in BATCH_SIZES),
        )
        for contender, measure in CONTENDERS.items()
    ]
    name = KINDS[model, dtype]
    explained = (
        f"{name[0].upper()}{name[1:]}: {results['num_parameters'] / 1e6:.1f} million parameters, {dtype} for all, "
        f"{options.threads} threads in the engine's environment (GOMP_SPINCOUNT, large pages). Prompts of 32 tokens, "
        f"{NUM_TOKENS} tokens each, drawn at temperature 1 from the whole distribution; medians of {options.rounds} "
        "rounds, all contenders in turn in one process. `ratio`: to transformers' rate for the base alone, to PEFT's "
        "for one adapter, to one adapter's for eight (of rank 16, in turn over the rows), to Caesura's for the limit. "
        "Caesura is the sampler as training calls it: it gives each token's log-probability too. `the limit`: the "
        "matrix products of the steps' linear layers and nothing else (queries, keys and values as one; gate and up as "
        "one), packed or not as is faster."
    )
    bars = [_bars(by_size)] if (model, dtype) == ("embedded", "float32") else []
    return report.section(f"Decoding, {name}", report.table(COLUMNS, rows), explained, *bars)


def _rate(result: Mapping[str, Mapping[str, float]], contender: str) -> str:
    return report.number(result[contender]["tokens_s"]) if contender in result else ""


def _ratio(result: Mapping[str, Mapping[str, float]], contender: str, measure: str) -> float:
    return result[contender]["tokens_s"] / result[measure]["tokens_s"]


def _ratio_text(result: Mapping[str, Mapping[str, float]], contender: str, measure: str) -> str:
    return report.number(_ratio(result, contender, measure), 2) if contender in result else ""


def _bars(by_size: Results) -> str:
    lines: list[str] = []
    for size, least in BARS.items():
        result = by_size[str(size)]
        base, tuned = _ratio(result, "caesura", "transformers"), _ratio(result, "caesura, 1 adapter", "peft, 1 adapter")
        claim = f"batch {size}: at least {least:g} times transformers' rate ({base:.2f}) and PEFT's ({tuned:.2f})"
        lines.append(report.bar(claim, min(base, tuned) >= least))
    mixed = _ratio(by_size["8"], "caesura, 8 adapters", "caesura, 1 adapter")
    claim = f"8 adapters in a batch of 8: at least 80 % of one's rate ({mixed:.0%})"
    lines.append(report.bar(claim, mixed >= MIXED_BAR))
    return "\n".join(lines)


def _waits(options: Options) -> str:
    """With a real server and OpenAI's client."""
    models: list[str] = []
    with running_server(
        lambda data_dir: models.extend(_keep_models(data_dir)), threads=str(options.threads), warm_spare="false"
    ) as server:
        client = server.client()
        cold_s = first_token_s(client, EMBEDDED_BASE)
        new_s = [first_token_s(client, model) for model in models]
        again_s = [first_token_s(client, model) for model in models]
        num_each = 2 if options.quick else 12
        began = time.perf_counter()
        waits_s, num_tokens = _under_load(server, models, num_each)
        tokens_s = num_tokens / (time.perf_counter() - began)
    percentiles = statistics.quantiles(waits_s, n=100, method="inclusive")
    rows = [
        ("the first request of all: engine started, base loaded", _ms(cold_s), ""),
        (f"a tuned model's first request ({len(models)} of them)", _ms(statistics.median(new_s)), _ms(max(new_s))),
        ("its second", _ms(statistics.median(again_s)), _ms(max(again_s))),
        (
            f"{NUM_CLIENTS} clients at once, {len(waits_s)} requests: p50, p99",
            _ms(percentiles[49]),
            _ms(percentiles[98]),
        ),
    ]
    explained = (
        "`caesura serve` and OpenAI's client on one machine; seconds from the call to the first piece of text of a "
        f"stream. Under load each of {NUM_CLIENTS} threads asks one of {len(models)} tuned models for "
        f"{ANSWER_TOKENS} tokens, again and again: {tokens_s:,.0f} tokens/s in all, with the clients' own work on the "
        "same cores."
    )
    bar = report.bar(
        f"first token of a new checkpoint within {FIRST_TOKEN_BAR_S} s (worst: {max(new_s):.2f} s)",
        max(new_s) <= FIRST_TOKEN_BAR_S,
    )
    return report.section(
        "Time to the first token", report.table(("ms", "median", "worst, or p99"), rows), explained, bar
    )


def _ms(seconds: float) -> str:
    return report.number(seconds * 1e3)


def _keep_models(data_dir: Path) -> list[str]:
    """Tuned models of random weights, straight into the store."""
    made = run_program("adapters", {"folder": str(data_dir / "made"), "number": NUM_TUNED})
    store, storage = open_store(data_dir), LocalStorage(data_dir / "blobs")
    names: list[str] = []
    for folder in made["folders"]:
        job = Job(
            id=new_id("ftjob-"),
            created_at=int(time.time()),
            status=Status.VALIDATING_FILES,
            base=EMBEDDED_BASE,
            model_name=f"ft:{EMBEDDED_BASE}:benchmark::{len(names):08d}",
            method={"type": "supervised", "supervised": {"hyperparameters": {}}},
            training_file="file-gone",
            training_blob="files/gone",
            seed=0,
        )
        store.jobs.create(job)
        store.jobs.mark_valid(job.id)
        claimed = store.attempts.claim(job.id, "benchmark", 60)
        assert claimed is not None
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        with storage.writer(f"files/{new_token()}") as writer:
            writer.write(b"step\n")
        results = new_file(writer.blob, "step_metrics.csv", "fine-tune-results")
        store.attempts.finish(claimed[1], 1, put_files(storage, "adapters", files), [results], trained_tokens=1)
        names.append(job.model_name)
    store.close()
    return names


def first_token_s(client: OpenAI, model: str) -> float:
    """Seconds to the first piece of text; the rest of the answer is read too."""
    return _ask(client, model, 4)[0]


def _under_load(server: RunningServer, models: list[str], num_each: int) -> tuple[list[float], int]:
    """Each request's wait, and how many tokens were made in all."""

    def ask_again_and_again(index: int) -> list[tuple[float, int]]:
        client = server.client()
        return [_ask(client, models[(index + turn) % len(models)], ANSWER_TOKENS) for turn in range(num_each)]

    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        asked = [one for some in threads.map(ask_again_and_again, range(NUM_CLIENTS)) for one in some]
    return [wait_s for wait_s, _ in asked], sum(num_tokens for _, num_tokens in asked)


def _ask(client: OpenAI, model: str, max_tokens: int) -> tuple[float, int]:
    """The wait, and the tokens made. End tokens are banned, so that all do the same work."""
    began = time.perf_counter()
    first_s, num_tokens = None, 0
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me a story about the sea."}],
        max_completion_tokens=max_tokens,
        logit_bias={"2": -100},
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if first_s is None and chunk.choices and chunk.choices[0].delta.content:
            first_s = time.perf_counter() - began
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    assert first_s is not None, json.dumps(model)
    return first_s, num_tokens
