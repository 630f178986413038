"""Supervised training on one GPU: tokens/s, the share of what the card can do, and memory, of models of Qwen 3's shapes
with random weights: `python -m benchmarks.gpu`.

A program of its own, for a machine that has torch, transformers and peft and no more: Caesura's own step is measured as
well where its package can be imported (it needs pydantic and pydantic-settings besides). Each contender runs in a
process of its own. `--quick --device cpu` shows in a minute that everything works.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import accumulate
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

from benchmarks import report

#: As published: hidden size, layers, heads, the size of the MLP, and whether input and output are one matrix.
SHAPES = {"0.6B": (1024, 28, 16, 3072, True), "8B": (4096, 36, 32, 12288, False), "tiny": (64, 2, 4, 128, True)}
#: Key and value heads, the size of a head, the vocabulary.
_PUBLISHED, _TINY = (8, 128, 151936), (2, 16, 512)
LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-5
#: Dense bfloat16 without sparsity, FLOP/s, from NVIDIA's data sheets; the first name that the card's own holds.
PUBLISHED_PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
#: Tokens a second that LoRA training on one card of the class of an H100 is to reach.
BARS = {"0.6B": 75_000, "8B": 14_100}
COLUMNS = (
    *("contender", "model", "trains", "rows", "tok/s", "MFU", "of the limit", "real positions", "peak GiB", "step s"),
    "first loss",
)
#: Products of such squares find what the card really reaches.
LIMIT_SIZE = {"cuda": 8192, "cpu": 512}
NUM_WARMUP_STEPS = 2
MAX_GRADIENT_NORM = 1.0
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: How a case's process begins what it tells.
RESULT = "result: "

#: Does one whole step, and returns its loss.
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured."""

    contender: str
    model: str
    #: `lora` or `full`.
    tuned: str
    #: `even` or `chats`.
    rows: str
    #: At most so many in a forward pass, and in a step.
    pass_tokens: int
    step_tokens: int
    device: str
    #: That it is timed.
    seconds: float

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in. A CPU shows that all compute the same, and so in fp32."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32


@dataclass(frozen=True, slots=True)
class Row:
    """A row of tokens; those from `first_learned` on are learned."""

    token_ids: list[int]
    first_learned: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_learned(self) -> int:
        """Nothing predicts the first token."""
        return len(self.token_ids) - max(1, self.first_learned)


def make_rows(kind: str, num_tokens: int, vocab_size: int, longest: int) -> list[Row]:
    """Rows with `num_tokens` in all. `even`: each as long as `longest`, and all of it is learned. `chats`: most are
    short and a few long, and the answer, the second half, is learned."""
    drawing = random.Random(1)
    lengths: list[int] = []
    while (left := num_tokens - sum(lengths)) > 0:
        length = longest if kind == "even" else min(longest, max(8, int(drawing.lognormvariate(4.9, 0.8))))
        lengths.append(left if left - length < 8 else length)
    ids = [[drawing.randrange(3, vocab_size) for _ in range(length)] for length in lengths]
    return [Row(token_ids, 0 if kind == "even" else len(token_ids) // 2) for token_ids in ids]


def configure(name: str) -> Qwen3Config:
    hidden_size, num_layers, num_heads, inner_size, is_tied = SHAPES[name]
    num_key_value_heads, head_dim, vocab_size = _TINY if name == "tiny" else _PUBLISHED
    return Qwen3Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=inner_size,
        tie_word_embeddings=is_tied,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def build_model(name: str, dtype: torch.dtype, device: str) -> Any:
    """A Qwen 3 with random weights, made where it will be, frozen; the same on every call."""
    torch.manual_seed(1)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(configure(name))
    finally:
        torch.set_default_dtype(previous)
    model.requires_grad_(requires_grad=False)
    return model.eval()


def num_multiplied(model: Any) -> int:
    """The weights that every token is multiplied with: all but the embeddings, of which it reads one row."""
    num_embedded = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - num_embedded


def flop_per_token(num_weights: int, tuned: str) -> int:
    """2 of the forward pass and 2 of what goes in; where the weights are trained, 2 more of their gradient. What
    attention and an adapter multiply is left out, and the head counts whether a token is learned or not."""
    return (4 if tuned == "lora" else 6) * num_weights


def split(rows: Sequence[Row], count: Callable[[list[Row]], int], pass_tokens: int) -> list[list[Row]]:
    """Rows, ordered by length, in passes that count at most so much, one row at least."""
    passes: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.num_tokens):
        if passes and count([*passes[-1], row]) <= pass_tokens:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def count_padded(rows: list[Row]) -> int:
    return len(rows) * max(row.num_tokens for row in rows)


def count_flat(rows: list[Row]) -> int:
    return sum(row.num_tokens for row in rows)


def build_padded(case: Case, rows: Sequence[Row]) -> Step:
    """What a plain loop over transformers and PEFT does at its best: rows of like length together, SDPA, no
    checkpointing; logits of all positions."""
    model = _to_train(case)
    return _loop(case, model, model, rows)


def build_compiled(case: Case, rows: Sequence[Row]) -> Step:
    model = _to_train(case)
    return _loop(case, model, torch.compile(model), rows)


def _loop(case: Case, model: Any, call: Any, rows: Sequence[Row]) -> Step:
    batches = [_pad(group, case.device) for group in split(rows, count_padded, case.pass_tokens)]
    num_learned = sum(row.num_learned for row in rows)

    def losses() -> Iterator[Tensor]:
        for ids_BT, labels_BT in batches:
            logits_BTV: Tensor = call(input_ids=ids_BT, use_cache=False).logits
            logits_NV = logits_BTV[:, :-1].flatten(0, 1).float()
            yield F.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum") / num_learned

    return _make_step(case, model, losses)


def _pad(rows: list[Row], device: str) -> tuple[Tensor, Tensor]:
    """Token ids and labels, [B, T]; labels of -100 are not learned."""
    ids_BT = torch.zeros(len(rows), max(row.num_tokens for row in rows), dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, -100)
    for place, row in enumerate(rows):
        ids_BT[place, : row.num_tokens] = torch.tensor(row.token_ids)
        labels_BT[place, row.first_learned : row.num_tokens] = torch.tensor(row.token_ids[row.first_learned :])
    return ids_BT.to(device), labels_BT.to(device)


def build_flat(case: Case, rows: Sequence[Row]) -> Step:
    """The same rows one after another on a flat axis, each attended to by itself (SDPA, causal), and logits only where
    a token is learned."""
    model = _to_train(case)
    model.set_attn_implementation("flat")
    batches = [_flatten(group, case.device) for group in split(rows, count_flat, case.pass_tokens)]
    num_learned = sum(row.num_learned for row in rows)

    def losses() -> Iterator[Tensor]:
        for targets_K, inputs in batches:
            logits_1KV: Tensor = model(**inputs, use_cache=False).logits
            yield F.cross_entropy(logits_1KV[0].float(), targets_K, reduction="sum") / num_learned

    return _make_step(case, model, losses)


def _flatten(rows: list[Row], device: str) -> tuple[Tensor, dict[str, Any]]:
    """The learned tokens, and what the model is called with."""
    lengths = [row.num_tokens for row in rows]
    learned = [
        start + place
        for start, row in zip(accumulate(lengths, initial=0), rows, strict=False)
        for place in range(max(1, row.first_learned), row.num_tokens)
    ]
    ids_T = torch.tensor([token for row in rows for token in row.token_ids], device=device)
    learned_K = torch.tensor(learned, device=device)
    inputs = {
        "input_ids": ids_T.unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths]).unsqueeze(0),
        "logits_to_keep": learned_K - 1,
        "row_lengths": lengths,
    }
    return ids_T[learned_K], inputs


def _attend_flat(
    _module: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, _mask: None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: returns [1, T, H, D]."""
    parts = (states.split(options["row_lengths"], dim=2) for states in (query_BHTD, key_BHTD, value_BHTD))
    mixed = [
        F.scaled_dot_product_attention(*row, is_causal=True, scale=options["scaling"], enable_gqa=True)
        for row in zip(*parts, strict=True)
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


AttentionInterface.register("flat", _attend_flat)


def build_caesura(case: Case, rows: Sequence[Row]) -> Step:
    """Raises ModuleNotFoundError where the package, or what it needs, is not there."""
    return import_module("benchmarks.gpu_product").build_step(case, build_model, rows)


def _to_train(case: Case) -> Any:
    """The model with what is trained of it: PEFT's adapter in fp32; or all weights in fp32, as autocast wants them."""
    model = build_model(case.model, torch.float32 if case.tuned == "full" else case.dtype, case.device)
    if case.tuned == "full":
        return model.requires_grad_()
    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _make_step(case: Case, model: Any, losses: Callable[[], Iterator[Tensor]]) -> Step:
    """`losses`: of the passes of a step, each made when the one before has been learned from."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> float:
        total = torch.zeros((), device=case.device)
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == torch.bfloat16):
            for loss in losses():
                loss.backward()
                total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


BUILDERS = {"padded": build_padded, "compiled": build_compiled, "flat": build_flat, "caesura": build_caesura}
NAMES = {
    "padded": "transformers + PEFT, padded",
    "compiled": "the same, torch.compile",
    "flat": "transformers + PEFT, flat",
    "caesura": "Caesura",
}


def measure(case: Case) -> dict[str, Any]:
    """What the case took, or why it could not be measured (`failed`)."""
    longest = case.step_tokens // 4 if case.device == "cpu" else 2048
    rows = make_rows(case.rows, case.step_tokens, configure(case.model).vocab_size, longest)
    try:
        with _counting_positions() as positions:
            step = BUILDERS[case.contender](case, rows)
            first_loss = step()
        for _ in range(NUM_WARMUP_STEPS):
            step()
        seconds: list[float] = []
        while not seconds or sum(seconds) < case.seconds:
            began = time.perf_counter()
            step()
            _synchronize(case.device)
            seconds.append(time.perf_counter() - began)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        return {"failed": f"left out: no {package} here"}
    except torch.OutOfMemoryError:
        return {"failed": "does not fit"}
    with torch.device("meta"):
        num_weights = num_multiplied(Qwen3ForCausalLM(configure(case.model)))
    return {
        "num_tokens": sum(row.num_tokens for row in rows),
        "num_positions": sum(positions),
        "step_s": statistics.median(seconds),
        "num_steps": len(seconds),
        "first_loss": first_loss,
        "peak_bytes": _peak_bytes(case.device),
        "flop_per_token": flop_per_token(num_weights, case.tuned),
    }


@contextmanager
def _counting_positions() -> Iterator[list[int]]:
    """How many positions go through an embedding in each pass, whoever makes it."""
    positions: list[int] = []

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Embedding):
            positions.append(inputs[0].numel())

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield positions
    finally:
        hook.remove()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(device: str) -> int:
    """Of the card what torch took; of a CPU the most that the process had."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def measure_limit(device: str, seconds: float) -> float:
    """FLOP/s of products of large bfloat16 squares of random numbers."""
    size = LIMIT_SIZE[device]
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best_s = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best_s == float("inf"):
        began = time.perf_counter()
        for _ in range(10):
            left @ right
        _synchronize(device)
        best_s = min(best_s, (time.perf_counter() - began) / 10)
    return 2 * size**3 / best_s


def published_peak(card: str) -> float | None:
    return next((peak for name, peak in PUBLISHED_PEAKS.items() if name in card), None)


def run_case(case: Case) -> dict[str, Any]:
    """Measure the case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--case", json.dumps(asdict(case))]
    ended = subprocess.run(command, capture_output=True, text=True)
    told = [line for line in ended.stdout.splitlines() if line.startswith(RESULT)]
    if ended.returncode or not told:
        print(ended.stderr[-4000:], file=sys.stderr, flush=True)
        return {"failed": f"ended with exit code {ended.returncode}"}
    return json.loads(told[-1].removeprefix(RESULT))


def describe(case: Case, told: dict[str, Any], limit: float, peak: float | None) -> list[str]:
    """The case's line of the table."""
    names = [NAMES[case.contender], case.model, case.tuned, case.rows]
    if "failed" in told:
        return [*names, told["failed"], *("" for _ in COLUMNS[len(names) + 1 :])]
    tokens_s = told["num_tokens"] / told["step_s"]
    flop_s = tokens_s * told["flop_per_token"]
    return [
        *names,
        report.number(tokens_s),
        "?" if peak is None else f"{flop_s / peak:.1%}",
        f"{flop_s / limit:.1%}",
        f"{told['num_tokens'] / told['num_positions']:.0%}",
        report.number(told["peak_bytes"] / 2**30, 1),
        report.number(told["step_s"], 3),
        report.number(told["first_loss"], 4),
    ]


def make_cases(given: argparse.Namespace) -> list[Case]:
    """A model of 8 billion parameters does not fit with all its weights trained; torch.compile would begin anew with
    every length of rows."""
    cases: list[Case] = []
    for model in given.models:
        pass_tokens, step_tokens = (128, 512) if model == "tiny" else (given.pass_tokens, given.step_tokens)
        for tuned in ("lora",) if model == "8B" else ("lora", "full"):
            for rows in ("even", "chats"):
                contenders = [name for name in given.contenders if name != "compiled" or rows == "even"]
                cases += [
                    Case(name, model, tuned, rows, pass_tokens, step_tokens, given.device, given.seconds)
                    for name in contenders
                ]
    return cases


def main() -> None:
    given = _parse()
    if given.case:
        print(RESULT + json.dumps(measure(Case(**json.loads(given.case)))), flush=True)
        return
    card = torch.cuda.get_device_name() if given.device == "cuda" else "a CPU"
    limit, peak = measure_limit(given.device, min(2.0, given.seconds)), published_peak(card)
    print(f"* {card}; Python {sys.version.split()[0]}, torch {torch.__version__}, transformers", end=" ")
    print(f"{transformers.__version__}, peft {peft.__version__}")
    print(f"* products of bfloat16 squares of {LIMIT_SIZE[given.device]}: {limit / 1e12:,.3g} TFLOP/s;", end=" ")
    print("published: " + ("not known here" if peak is None else f"{peak / 1e12:,.0f}") + "\n")
    print(report.table(COLUMNS, []), flush=True)
    best: dict[str, float] = {}
    for case in make_cases(given):
        told = run_case(case)
        print("| " + " | ".join(describe(case, told, limit, peak)) + " |", flush=True)
        if case.contender == "caesura" and case.tuned == "lora" and "failed" not in told:
            best[case.model] = max(best.get(case.model, 0.0), told["num_tokens"] / told["step_s"])
    print()
    for model, tokens_s in best.items():
        if given.device == "cuda" and model in BARS:
            claim = f"Caesura, LoRA, {model}: {BARS[model]:,} tokens/s on one card ({tokens_s:,.0f})"
            print(report.bar(claim, tokens_s >= BARS[model]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split(":")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that everything works")
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="[default: 0.6B 8B; with --quick: tiny]")
    parser.add_argument("--contenders", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--pass-tokens", type=int, default=4096, help="of a forward pass, at most [default: 4096]")
    parser.add_argument("--step-tokens", type=int, default=32768, help="of a step [default: 32768]")
    parser.add_argument("--seconds", type=float, help="that each case is timed [default: 5; with --quick: 0.2]")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.models = given.models or (["tiny"] if given.quick else ["0.6B", "8B"])
    given.seconds = given.seconds or (0.2 if given.quick else 5.0)
    return given


if __name__ == "__main__":
    main()
