"""What a job may be asked for beyond OpenAI's API, and what comes of it."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from tests.worker.disturb import NUM_STEPS, STEPS_PER_EPOCH, Rows, at_step, create, validated
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
