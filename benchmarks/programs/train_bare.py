"""The passes of Caesura's training and nothing around them: what its job costs beyond that is its overhead.

All batches are tensors before the clock starts; then forward, loss, backward, clipping, optimizer. No store, no saves,
no metrics but the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.programs import arguments, finish
from benchmarks.programs.recorder import Recorder
from benchmarks.programs.train_caesura import BASE, make_job, make_settings, of_job
from caesura.data.render import Example
from caesura.training.batch import Flat
from caesura.training.hyperparameters import learning_rate_at
from caesura.training.logprobs import flat_logprobs
from caesura.training.plan import make_plan
from caesura.training.row_batch import make_flat_rows, split_rows
from caesura.training.setup import read_rows, set_up
from caesura.training.trainer import ADAM_BETAS, MAX_GRADIENT_NORM


def main() -> None:
    asked = arguments()
    with TemporaryDirectory() as folder:
        settings = make_settings(asked, folder)
    base = settings.models[BASE]
    job = make_job(asked["seed"], BASE, "supervised", **of_job(asked))
    rows = read_rows(Path(asked["data"]).read_bytes().splitlines(), "supervised")
    plan = make_plan(job, settings, base, len(rows), None)
    setup = set_up(job, base, plan, rows, [])
    model, trained = setup.base.model, setup.trained
    parameters = list(trained.load(trained.fresh_state(job.seed)).values())
    optimizer = torch.optim.AdamW(parameters, betas=ADAM_BETAS, weight_decay=0.0, fused=True)
    device = torch.device(plan.device)
    steps = [setup.method.rows_of_step(step) for step in range(1, asked["num_steps"] + 1)]
    batches = [
        [_to_batch(group, device) for group in split_rows(rows_of_step, plan.micro_batch_tokens, flat=True)]
        for rows_of_step in steps
    ]
    recorder = Recorder(1, asked["num_steps"])
    recorder.watch(model.get_submodule("model.embed_tokens"))
    recorder.begin()
    for step, rows_of_step, of_step in zip(itertools.count(1), steps, batches):
        num_learned = sum(row.num_loss_tokens for row in rows_of_step)
        losses = [_backward(model, batch, num_learned) for batch in of_step]
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, plan.num_steps, plan.learning_rate)
        optimizer.step()
        trained.updated()
        optimizer.zero_grad(set_to_none=True)
        recorder.losses.append(sum(loss.item() for loss in losses))
        recorder.tokens.append(sum(row.num_tokens for row in rows_of_step))
        recorder.end_step()
    num_learned = sum(row.num_loss_tokens for rows_of_step in steps for row in rows_of_step)
    finish(recorder.result() | {"num_learned": num_learned})


def _to_batch(rows: Sequence[Example], device: torch.device) -> Flat:
    return make_flat_rows(rows, [row.loss_mask[1:] for row in rows], device)


def _backward(model: nn.Module, batch: Flat, num_learned: int) -> Tensor:
    loss = -flat_logprobs(model, batch)[0].sum() / num_learned
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    main()
