"""What a job may be asked for beyond OpenAI's API, and what comes of it."""

from __future__ import annotations

import pytest

from tests.worker.disturb import STEPS_PER_EPOCH, Rows, create
from tests.world import World, example_rows

METHODS = ["supervised", "dpo"]
PREFERENCES = "preference_train.jsonl", "preference_validation.jsonl"


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_is_made_every_so_many_steps_and_validated_in_full(
    world: World, training: Rows, validation: Rows, method: str
) -> None:
    if method == "dpo":
        training, validation = (example_rows(name)[:20] for name in PREFERENCES)
    job = world.run(create(world, training, validation, method=method, extras={"checkpoint_every": 3}))

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
