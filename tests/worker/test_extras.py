"""What a job may be asked for beyond OpenAI's API, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import inf, isnan, nan
from typing import Any

import pytest
import torch

from caesura.data.order import epoch_order
from caesura.data.render import render_row
from caesura.data.rows import Row, parse_rows
from caesura.jobs import Job, Status
from caesura.models.loading import load_base
from caesura.store.attempts import Attempts
from caesura.training.hyperparameters import learning_rate_at
from caesura.training.method import Metrics
from caesura.training.supervised import Supervised
from caesura.training.trainer import Trainer
from tests.worker.disturb import (
    FEW_SHORT_ANSWERS,
    NUM_STEPS,
    REINFORCEMENT,
    STEPS_PER_EPOCH,
    Crash,
    Rows,
    at_step,
    crash_in,
    create,
    to_prompts,
    validated,
)
from tests.world import World, example_rows

METHODS = ["supervised", "dpo"]


def rows_of(method: str, training: Rows, validation: Rows) -> tuple[Rows, Rows]:
    if method == "dpo":
        return example_rows("preference_train.jsonl")[:20], example_rows("preference_validation.jsonl")[:10]
    return training, validation


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_is_made_every_so_many_steps_and_validated_in_full(
    world: World, training: Rows, validation: Rows, method: str
) -> None:
    rows = rows_of(method, training, validation)
    job = world.run(create(world, *rows, method=method, extras={"checkpoint_every": 3}))

    models, _ = world.store.models.list_of_job(job.id, after=None, limit=10)
    assert [model.step for model in models] == [10, 9, 6, STEPS_PER_EPOCH, 3]
    assert [model.reason for model in models] == ["final", "step", "step", "epoch", "step"]
    assert all("full_valid_loss" in model.metrics for model in models)
    validated = [data["step"] for data in world.store.jobs.list_metrics(job.id) if "full_valid_loss" in data]
    assert validated == [3, 5, 6, 9, 10]


def test_checkpoints_between_those_of_epochs_change_no_byte(world: World, training: Rows, validation: Rows) -> None:
    without = world.outcome(world.run(create(world, training, validation)))
    with_them = world.outcome(world.run(create(world, training, validation, extras={"checkpoint_every": 2})))

    assert with_them.adapter == without.adapter


def tokens_by_step(world: World, job: Job) -> list[int]:
    """Of the rows of every step, by the order of the job's seed."""
    base = load_base("micro", world.settings.models["micro"], torch.float32, torch.device("cpu"))
    with world.storage.open(job.training_blob) as lines:
        rows = [row for row in parse_rows(lines) if isinstance(row, Row)]
    lengths = [render_row(row, base.tokenizer, 512).num_tokens for row in rows]
    batches = [batch for epoch in (0, 1) for batch in epoch_order(lengths, 4, job.seed, epoch)]
    return [sum(lengths[row] for row in batch) for batch in batches]


#: Loss by step → the step that is delivered.
BEST = {
    "a step between": ({2: 0.5, 4: 0.3, 5: 0.4, 6: 0.6, 8: 0.6, 10: 0.31}, 4),
    "the end of an epoch": ({2: 0.5, 4: 0.3, 5: 0.2, 6: 0.6, 8: 0.6, 10: 0.31}, 5),
    "the last step": ({2: 0.5, 4: 0.3, 5: 0.4, 6: 0.6, 8: 0.6, 10: 0.29}, 10),
    "the earlier of two": ({2: 0.3, 4: 0.4, 5: 0.3, 6: 0.6, 8: 0.6, 10: 0.3}, 2),
    "one that is a number": ({2: nan, 4: inf, 5: 7.0, 6: nan, 8: nan, 10: nan}, 5),
    "the last where none is a number": (dict.fromkeys((2, 4, 5, 6, 8, 10), nan), 10),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("losses", "step"), BEST.values(), ids=BEST.keys())
def test_keep_best_delivers_the_checkpoint_with_the_lowest_validation_loss(
    world: World,
    training: Rows,
    validation: Rows,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    losses: dict[int, float],
    step: int,
) -> None:
    validated(monkeypatch, losses)
    rows = rows_of(method, training, validation)
    job = world.run(create(world, *rows, method=method, extras={"checkpoint_every": 2, "keep_best": True}))

    models, _ = world.store.models.list_of_job(job.id, after=None, limit=20)
    final = next(model for model in models if model.name == job.model_name)
    assert final.step == step
    checkpoint = next((model for model in models if model.name == job.checkpoint_name(step)), None)
    assert (checkpoint is None) == (step == NUM_STEPS)
    assert checkpoint is None or checkpoint.adapter == final.adapter
    told = [text for text in world.messages(job) if text.startswith("The fine-tuned model is that of step")]
    loss = losses[step]
    lowest = f"The fine-tuned model is that of step {step}, which has the lowest full validation loss: {loss:.4f}"
    assert told == ([] if isnan(loss) else [lowest])


def test_the_best_checkpoint_is_kept_whatever_else_is_dropped(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, {step: 0.5 + step / 100 for step in range(1, 11)})
    extras = {"checkpoint_every": 1, "keep_best": True}
    job = world.run(world.create_job(training, validation, batch_size=10, n_epochs=5, extras=extras))

    models, _ = world.store.models.list_of_job(job.id, after=None, limit=20)
    assert [(model.step, model.reason) for model in models] == [
        (9, "step"),
        (8, "epoch"),
        (7, "step"),
        (6, "epoch"),
        (5, "step"),
        (1, "final"),
        (1, "step"),
    ]


def test_without_keep_best_the_last_step_is_delivered(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, {5: 0.1, 10: 0.2})
    job = world.run(create(world, training, validation))

    final = world.store.models.find(job.model_name)
    assert final is not None
    assert final.step == NUM_STEPS


def test_a_best_checkpoint_that_was_deleted_leaves_the_next_best(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, {2: 0.1, 4: 0.2, 5: 0.3, 6: 0.4, 8: 0.5, 10: 0.6})
    job = create(world, training, validation, extras={"checkpoint_every": 2, "keep_best": True})
    at_step(monkeypatch, 7, lambda: world.store.models.delete(job.checkpoint_name(2)))
    world.run(job)

    final = world.store.models.find(job.model_name)
    assert final is not None
    assert final.step == 4


@pytest.mark.parametrize("method", METHODS)
def test_early_stopping_ends_the_job_and_says_where_and_why(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    validated(monkeypatch, {3: 0.5, 5: 0.6, 6: 0.495})
    extras = {"early_stopping": {"patience": 2, "min_delta": 0.01}, "checkpoint_every": 3}
    rows = rows_of(method, training, validation)
    job = world.run(create(world, *rows, method=method, extras=extras))

    assert (job.status, job.step) == (Status.SUCCEEDED, 6)
    assert world.messages(job)[-3:] == [
        "Training ends early, after step 6: the full validation loss was not below 0.5000 by more than 0.01 in 2 "
        "validations in a row",
        f"New fine-tuned model created: {job.model_name}",
        "The job has successfully completed",
    ]
    final = world.store.models.find(job.model_name)
    assert final is not None
    assert final.step == 6
    assert world.store.models.find(job.checkpoint_name(6)) is None  # it would be the same once more
    assert len(world.outcome(job).results[0].splitlines()) == 1 + 6


def test_a_job_that_ended_early_counts_the_tokens_that_it_trained_on(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, {4: 0.5, 5: 0.6, 8: 0.7})
    extras = {"early_stopping": {"patience": 2, "min_delta": 0.0}, "checkpoint_every": 4}
    whole = world.run(create(world, training, validation))
    job = world.run(create(world, training, validation, extras=extras))
    shorter = world.run(create(world, training, validation, extras={"early_stopping": extras["early_stopping"]}))

    tokens = tokens_by_step(world, job)
    assert (job.step, job.trained_tokens) == (8, sum(tokens[:8]))
    assert whole.trained_tokens == shorter.trained_tokens == sum(tokens)


def test_every_step_tells_its_learning_rate_and_its_speed_and_checkpoints_and_results_do_not(
    world: World, training: Rows, validation: Rows
) -> None:
    job = world.run(create(world, training, validation))
    assert job.plan is not None

    metrics = world.store.jobs.list_metrics(job.id)
    rates = [learning_rate_at(step, NUM_STEPS, job.plan["learning_rate"]) for step in range(1, NUM_STEPS + 1)]
    assert [data["learning_rate"] for data in metrics] == rates
    assert all(data["tokens_per_second"] > 0 for data in metrics)
    checkpoint = world.store.models.find(job.checkpoint_name(STEPS_PER_EPOCH))
    assert checkpoint is not None
    assert not {"learning_rate", "tokens_per_second"} & set(checkpoint.metrics)
    assert "learning_rate" not in world.outcome(job).results[0]


def test_the_speed_is_the_tokens_of_the_step_over_the_seconds_of_its_training_alone(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    original = Supervised.backward, Supervised.validate_fully

    def backward(self: Any, model: Any, step: int) -> Metrics:
        clock[0] += 2.0
        return original[0](self, model, step)

    def validate_fully(self: Any, model: Any, step: int) -> Metrics | None:
        clock[0] += 100.0
        return original[1](self, model, step)

    monkeypatch.setattr(Supervised, "backward", backward)
    monkeypatch.setattr(Supervised, "validate_fully", validate_fully)
    monkeypatch.setattr("caesura.training.trainer.time.perf_counter", lambda: clock[0])
    job = world.run(create(world, training, validation))

    speeds = [data["tokens_per_second"] for data in world.store.jobs.list_metrics(job.id)]
    assert job.trained_tokens is not None
    assert sum(speeds) * 2.0 == pytest.approx(job.trained_tokens, rel=0.01)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts the clock that measures how long something takes forward, by seconds."""
    real, ahead_s = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead_s[0])

    def pass_time(seconds: float) -> None:
        ahead_s[0] += seconds

    return pass_time


MINUTES = "The job has trained for 1.2 minutes, max_minutes being 1, and pauses itself after step {step}. "


def test_max_minutes_pauses_the_job_and_counts_anew_after_a_resume(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch, pass_time: Callable[[float], None]
) -> None:
    job = create(world, training, extras={"max_minutes": 1})
    for step, seconds in [(2, 40), (4, 30), (5, 50), (7, 20)]:
        at_step(monkeypatch, step, partial(pass_time, seconds))

    assert (world.run(job).status, world.store.jobs.get(job.id).step) == (Status.PAUSED, 4)
    assert world.messages(job)[-4].startswith(MINUTES.format(step=4))
    assert world.store.models.find(job.checkpoint_name(4)) is not None
    world.store.jobs.resume(job.id)
    assert (world.run(job).status, world.store.jobs.get(job.id).step) == (Status.PAUSED, 7)
    assert world.messages(job)[-4].startswith(MINUTES.format(step=7))
    world.store.jobs.resume(job.id)
    assert world.run(job).status is Status.SUCCEEDED


@pytest.mark.parametrize("paused", [False, True])
def test_max_minutes_counts_on_after_a_crash_as_far_as_was_saved_and_not_over_a_pause(
    world: World,
    training: Rows,
    monkeypatch: pytest.MonkeyPatch,
    pass_time: Callable[[float], None],
    paused: bool,
) -> None:
    job = create(world, training, extras={"max_minutes": 1})
    at_step(monkeypatch, 2, partial(pass_time, 40))
    with monkeypatch.context() as patch:
        crash_in(patch, Trainer, "step", after=True, call=STEPS_PER_EPOCH + 2)
        at_step(patch, STEPS_PER_EPOCH + 1, partial(pass_time, 10))  # after the last save
        with pytest.raises(Crash):
            world.run(job, "worker-1")
    if paused:
        world.store.jobs.pause(job.id)
    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")
    if paused:
        world.store.jobs.resume(job.id)
    at_step(monkeypatch, STEPS_PER_EPOCH + 3, partial(pass_time, 30))

    status = world.run(job).status
    assert status is (Status.SUCCEEDED if paused else Status.PAUSED)
    assert any(message.startswith(MINUTES.format(step=8)) for message in world.messages(job)) == (not paused)


def test_a_limit_that_is_reached_with_the_last_step_pauses_nothing(world: World, training: Rows) -> None:
    plain = world.run(create(world, training))
    assert plain.trained_tokens is not None
    job = world.run(create(world, training, extras={"max_tokens": plain.trained_tokens}))

    assert job.status is Status.SUCCEEDED
    assert not [message for message in world.messages(job) if "pauses itself" in message]


def test_max_tokens_pauses_the_job_once_though_its_worker_dies_on_the_way(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    tokens = tokens_by_step(world, job)
    job = create(world, training, extras={"max_tokens": sum(tokens[:7])})
    with monkeypatch.context() as patch:
        crash_in(patch, Attempts, "pause_itself", after=False)
        with pytest.raises(Crash):
            world.run(job, "worker-1")
    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")

    assert (world.run(job).status, world.store.jobs.get(job.id).step) == (Status.PAUSED, 7)
    said = f"The job has trained on {sum(tokens[:7])} tokens, max_tokens being {sum(tokens[:7])}, and pauses itself"
    assert [message.startswith(said) for message in world.messages(job)].count(True) == 1
    world.store.jobs.resume(job.id)
    assert world.run(job).status is Status.SUCCEEDED


def test_the_tokens_of_reinforcement_are_those_of_its_answers(world: World, training: Rows, validation: Rows) -> None:
    make = partial(create, world, to_prompts(training), to_prompts(validation), method="reinforcement")
    plain = world.run(make(body=REINFORCEMENT, **FEW_SHORT_ANSWERS))
    counts = [data["completion_tokens_count"] for data in world.store.jobs.list_metrics(plain.id)]
    job = world.run(make(body=REINFORCEMENT, extras={"max_tokens": sum(counts[:4])}, **FEW_SHORT_ANSWERS))

    assert (job.status, job.step) == (Status.PAUSED, 4)
    assert plain.trained_tokens == sum(counts)
    world.store.jobs.resume(job.id)
    assert world.run(job).trained_tokens == plain.trained_tokens
