"""The second result file of a supervised job: which of its rows were hard to learn."""

from __future__ import annotations

import csv
import io

import pytest
import torch

from caesura.data.render import render_row
from caesura.data.rows import Row, parse_rows
from caesura.jobs import Job
from caesura.models.loading import load_base
from caesura.training.batch import make_batch
from caesura.training.logprobs import token_logprobs
from tests.worker.disturb import Rows, create
from tests.world import World, example_rows


def row_losses(world: World, job: Job) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(world.outcome(job).results[1])))


def test_every_row_has_its_loss_and_the_files_of_openai_come_first(world: World, training: Rows) -> None:
    job = world.run(create(world, training))
    names = [world.store.files.get(file_id).filename for file_id in job.result_files]
    rows = row_losses(world, job)

    assert names == ["step_metrics.csv", "row_losses.csv"]
    assert [row["line"] for row in rows] == [str(line) for line in range(1, 21)]
    assert list(rows[0]) == ["line", "tokens", "loss", "z_score"]


def test_the_losses_are_those_that_the_steps_of_the_last_epoch_were_made_of(world: World, training: Rows) -> None:
    job = world.run(create(world, training))
    metrics = world.outcome(job).metrics

    rows = row_losses(world, job)
    tokens = sum(int(row["tokens"]) for row in rows)
    mean = sum(int(row["tokens"]) * float(row["loss"]) for row in rows) / tokens
    assert min(data["train_loss"] for data in metrics[5:]) < mean < max(data["train_loss"] for data in metrics[5:])


def test_the_loss_of_a_row_is_the_mean_over_its_learned_tokens(world: World, training: Rows) -> None:
    job = world.run(world.create_job(training, batch_size=20, n_epochs=1))
    base = load_base("micro", world.settings.models["micro"], torch.float32, torch.device("cpu"))
    with world.storage.open(job.training_blob) as lines:
        parsed = [row for row in parse_rows(lines) if isinstance(row, Row)]

    # The first step's weights are those of the base.
    for told, row in zip(row_losses(world, job), parsed, strict=True):
        batch = make_batch([render_row(row, base.tokenizer, 512)])
        with torch.no_grad():
            logprobs_1K, _ = token_logprobs(base.model, batch)
        num_learned = int(batch.mask_BK.sum().item())
        loss = -(logprobs_1K * batch.mask_BK).sum().item() / num_learned
        assert int(told["tokens"]) == num_learned
        assert float(told["loss"]) == pytest.approx(loss, rel=0.02)  # bfloat16, where the processor has it


def test_rows_that_stand_out_are_named_by_an_event(world: World) -> None:
    rows = example_rows("style_train.jsonl")[:1] * 30
    rows[11] = {"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "qqqqqqqqqqqqqq"}]}
    for number in range(0, 30, 2):
        rows[number] = {"messages": [{"role": "user", "content": f"{number}?"}, rows[0]["messages"][-1]]}
    job = world.run(world.create_job(rows, batch_size=2, n_epochs=2, learning_rate_multiplier=2.0))

    (told,) = [text for text in world.messages(job) if text.startswith("Lines of the training file that were much")]
    assert told.startswith("Lines of the training file that were much harder to learn than the others: 12 (loss ")


def test_rows_without_anything_to_learn_are_left_out(world: World, training: Rows) -> None:
    training[7] = {"messages": [{"role": "user", "content": "word " * 600}, {"role": "assistant", "content": "Hi"}]}
    job = world.run(create(world, training))

    assert [int(row["line"]) for row in row_losses(world, job)] == [*range(1, 8), *range(9, 21)]


def test_a_job_of_another_method_has_one_file(world: World) -> None:
    job = world.run(create(world, example_rows("preference_train.jsonl")[:20], method="dpo"))

    assert len(job.result_files) == 1
