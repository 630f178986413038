"""Trains the base model on the encoded corpus: a fixed number of steps on one thread, from a seed.

    python -m pretraining.train --tokenizer caesura/assets/caesura-tiny \\
        --corpus /tmp/pretraining/corpus.npz --out /tmp/pretraining/run --steps 3750

Every batch, learning rate and random choice is a function of (seed, step), never of the clock or of what
ran before, so the same machine type, libraries and thread count give the same bytes, and a stopped run
that is started again goes on from its last save (--out/state.pt) to the same end.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from pretraining.model import make_config, selected_logits

THREADS = 1
BATCH_TOKENS = 6144
CHUNK = 8192
MATRIX_RATE, OTHER_RATE = 0.025, 0.005
WARMUP_STEPS = 50
PROMPT_SHARE, PROMPT_WEIGHT = 0.2, 0.5
"""Of the tokens that are not answers a fifth is trained on at half weight: a tenth in all."""


class Corpus:
    """The encoded conversations and the batches they make: similar lengths, at most BATCH_TOKENS padded."""

    def __init__(self, path: Path, seed: int) -> None:
        with np.load(path) as arrays:
            self.ids, self.trained = arrays["ids"], arrays["trained"]
            self.lengths = arrays["lengths"]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self.batches = self._batches(np.random.default_rng(seed))

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Chunk by chunk in the corpus's order (it gets harder), shuffled within a chunk."""
        batches: list[np.ndarray] = []
        for low in range(0, len(self.lengths), CHUNK):
            rows = np.arange(low, min(low + CHUNK, len(self.lengths)))
            rows = rows[np.argsort(self.lengths[rows] + rng.random(len(rows)))]
            chunk: list[np.ndarray] = []
            first = 0
            for i in range(len(rows)):
                if self.lengths[rows[i]] * (i - first + 1) > BATCH_TOKENS:
                    chunk.append(rows[first:i])
                    first = i
            chunk.append(rows[first:])
            batches += [chunk[i] for i in rng.permutation(len(chunk))]
        return batches

    def batch(self, step: int, pad_id: int) -> tuple[Tensor, Tensor, int]:
        """Token ids, marks of the answers' tokens, and the count of tokens that are not padding."""
        rows = self.batches[step % len(self.batches)]
        width = int(self.lengths[rows].max())
        ids_BT = np.full((len(rows), width), pad_id, np.int64)
        answer_BT = np.zeros((len(rows), width), np.bool_)
        for at, row in enumerate(rows):
            span = slice(self.starts[row], self.starts[row + 1])
            ids_BT[at, : self.lengths[row]] = self.ids[span]
            answer_BT[at, : self.lengths[row]] = self.trained[span]
        return torch.from_numpy(ids_BT), torch.from_numpy(answer_BT), int(self.lengths[rows].sum())


@dataclass(frozen=True)
class Schedule:
    """The learning rates' share at each step: warm-up, flat, then a straight line to almost nothing."""

    num_steps: int
    peak: float
    flat_share: float

    def share(self, step: int) -> float:
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        left = (1 - step / self.num_steps) / (1 - self.flat_share)
        return self.peak * warm * max(0.01, min(1.0, left))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon on the matrices, AdamW on embeddings and norms: faster per step than AdamW on all."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    ids_BT: Tensor,
    answer_BT: Tensor,
    step: int,
) -> float:
    """One step; returns the mean loss of the answers' tokens."""
    generator = torch.Generator().manual_seed(step)
    targets, answers = ids_BT[:, 1:], answer_BT[:, 1:]
    chosen = torch.rand(targets.shape, generator=generator) < PROMPT_SHARE
    selected = answers | (chosen & (targets != model.config.pad_token_id))
    before = F.pad(selected, (0, 1))  # the logits that predict a token stand one place before it
    losses = F.cross_entropy(selected_logits(model, ids_BT, before).float(), targets[selected], reduction="none")
    is_answer = answers[selected]
    weights = torch.where(is_answer, 1.0, PROMPT_WEIGHT)
    ((losses * weights).sum() / weights.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(losses.detach()[is_answer].mean())


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """config.json, generation_config.json and the weights in bfloat16."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    copy.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    copy.save_pretrained(out)


@dataclass
class Run:
    """What changes from step to step, and is saved."""

    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule
    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    answer_loss: float = 0.0
    """Mean loss of the answers' tokens, smoothed over about 50 steps."""

    def save(self, out: Path) -> None:
        """The state to go on from, and beside it the model as it is now."""
        state = {
            "schedule": asdict(self.schedule),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": (self.step, self.num_tokens, self.seconds, self.answer_loss),
        }
        torch.save(state, out / "state.tmp")
        os.replace(out / "state.tmp", out / "state.pt")
        save_model(self.model, out / "model")

    def restore(self, path: Path) -> None:
        """Goes on from a save. While the rate is flat, runs of different lengths are still the same run."""
        state = torch.load(path)
        before = Schedule(**state["schedule"])
        flat_steps = min(s.flat_share * s.num_steps for s in (before, self.schedule))
        same = before == self.schedule or state["counters"][0] <= flat_steps
        assert same, f"{path} belongs to a run with {before}"
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.num_tokens, self.seconds, self.answer_loss = state["counters"]

    def record(self, seed: int) -> dict[str, Any]:
        return {
            "seed": seed,
            **asdict(self.schedule),
            "tokens": self.num_tokens,
            "seconds": round(self.seconds),
            "answer_loss": round(self.answer_loss, 4),
            "threads": THREADS,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def train(run: Run, corpus: Corpus, pad_id: int, out: Path, save_every: int) -> None:
    run.model.train()
    started = time.monotonic() - run.seconds
    while run.step < run.schedule.num_steps:
        share = run.schedule.share(run.step)
        for optimizer, rate in zip(run.optimizers, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
        ids_BT, answer_BT, num_tokens = corpus.batch(run.step, pad_id)
        loss = train_step(run.model, run.optimizers, ids_BT, answer_BT, run.step)
        run.answer_loss = 0.98 * run.answer_loss + 0.02 * loss if run.step else loss
        run.step, run.num_tokens = run.step + 1, run.num_tokens + num_tokens
        run.seconds = time.monotonic() - started
        if run.step % 50 == 0:
            tokens = f"{run.num_tokens / 1e6:.2f} M tokens"
            print(f"step {run.step} {run.seconds:.0f} s {tokens} answer loss {run.answer_loss:.3f}", flush=True)
        if run.step % save_every == 0 or run.step == run.schedule.num_steps:
            run.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--init", type=Path, help="state.pt of the stage before: begin with its weights")
    parser.add_argument("--peak", type=float, default=1.0, help="share of the full learning rates")
    parser.add_argument("--flat", type=float, default=0.4, help="share of the steps before the rates fall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(args.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(args.tokenizer)
    eos, pad, context = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length
    model = LlamaForCausalLM(make_config(len(tokenizer), eos, pad, context))
    if args.init:
        model.load_state_dict(torch.load(args.init)["model"])
    run = Run(model, make_optimizers(model), Schedule(args.steps, args.peak, args.flat))
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "state.pt").exists():
        run.restore(args.out / "state.pt")
    corpus = Corpus(args.corpus, args.seed)
    print(
        f"{model.num_parameters()} parameters, {len(corpus.batches)} batches, from step {run.step}",
        flush=True,
    )
    train(run, corpus, pad, args.out, args.save_every)
    (args.out / "run.json").write_text(json.dumps(run.record(args.seed), indent=2) + "\n")


if __name__ == "__main__":
    main()
