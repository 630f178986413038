"""What an attempt at a DPO job tells, and jobs that go on from a tuned model."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from caesura.errors import BlobDamaged
from caesura.jobs import Job, Model, Status
from caesura.models import lora
from caesura.storage import get_files
from caesura.training.reference import Reference
from tests.worker.disturb import NUM_STEPS, STEPS_PER_EPOCH, Rows, at_step
from tests.world import World, example_rows

REWARDS = ("accuracy", "margin", "chosen", "rejected")
LONG = "many words " * 600


@pytest.fixture
def pairs() -> Rows:
    return example_rows("preference_train.jsonl")[:20]


def create(world: World, pairs: Rows, validation: Rows | None = None, **values: Any) -> Job:
    return world.create_job(pairs, validation, method="dpo", **({"batch_size": 4, "n_epochs": 2} | values))


def tuned_model(world: World, training: Rows) -> Model:
    job = world.run(world.create_job(training, batch_size=4, n_epochs=2, learning_rate_multiplier=3.0))
    model = world.store.models.find(job.model_name)
    assert model is not None
    return model


def test_the_metrics_of_every_step_are_told_with_their_rewards(world: World, pairs: Rows) -> None:
    validation = example_rows("preference_validation.jsonl")[:10]
    job = world.run(create(world, pairs, validation))
    metrics = world.outcome(job).metrics

    names = ["loss", "mean_token_accuracy", *(f"reward_{name}" for name in REWARDS)]
    assert set(metrics[0]) == {"step", "total_steps", "learning_rate", *(f"train_{name}" for name in names)}
    ends = metrics[STEPS_PER_EPOCH - 1]
    assert {f"{prefix}_{name}" for prefix in ("train", "valid", "full_valid") for name in names} < set(ends)
    assert f"Step 1/{NUM_STEPS}: training loss=0.69" in world.messages(job)
    model = world.store.models.find(job.checkpoint_name(STEPS_PER_EPOCH))
    assert model is not None
    assert model.metrics["full_valid_reward_accuracy"] == ends["full_valid_reward_accuracy"]


def test_the_result_file_has_the_columns_of_supervised_jobs_and_then_the_rewards(world: World, pairs: Rows) -> None:
    outcome = world.outcome(world.run(create(world, pairs, example_rows("preference_validation.jsonl")[:10])))
    header, first, *_, last = outcome.results[0].splitlines()

    assert header.split(",")[:8] == [
        "step",
        "train_loss",
        "train_accuracy",
        "train_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    ]
    assert header.split(",")[8:] == [
        f"{prefix}_reward_{name}" for prefix in ("train", "valid", "full_valid") for name in REWARDS
    ]
    told = outcome.metrics[0]
    assert first.split(",")[8:12] == [str(told[f"train_reward_{name}"]) for name in REWARDS]
    assert first.endswith(",,,,,,,,")
    assert ",," not in last


def test_auto_means_the_papers_beta_and_batches_of_eight(world: World, pairs: Rows) -> None:
    job = world.run(world.create_job(pairs, method="dpo"))

    assert job.plan is not None
    named = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta", "loss_type", "label_smoothing")
    assert [job.plan[name] for name in named] == [5, 8, 1.0, 0.1, "sigmoid", 0.0]
    assert job.plan["l2_multiplier"] == 0.0


def test_what_is_asked_for_is_what_is_done(world: World, pairs: Rows) -> None:
    asked = {"beta": 0.7, "l2_multiplier": 0.3, "loss_type": "ipo"}
    job = world.run(create(world, pairs, **asked))

    assert job.plan is not None
    assert {name: job.plan[name] for name in asked} == asked
    # At the first step all ratios are 0: (1 / (2 · 0.7))².
    assert world.outcome(job).metrics[0]["train_loss"] == pytest.approx(1 / (2 * 0.7) ** 2, abs=1e-4)


def test_trained_tokens_count_both_answers_with_their_prompt(world: World, pairs: Rows) -> None:
    one = world.run(create(world, pairs, n_epochs=1, batch_size=20))
    three = world.run(create(world, pairs, n_epochs=3, batch_size=20))
    conversations = [
        {"messages": [*row["input"]["messages"], *row[side]]}
        for row in pairs
        for side in ("preferred_output", "non_preferred_output")
    ]
    supervised = world.run(world.create_job(conversations, n_epochs=1, batch_size=40))

    assert three.trained_tokens == 3 * (one.trained_tokens or 0)
    assert one.trained_tokens == supervised.trained_tokens


def test_prompts_that_leave_no_room_are_left_out_and_told_by_their_lines(world: World, pairs: Rows) -> None:
    pairs[4] = pairs[4] | {"input": {"messages": [{"role": "user", "content": LONG}]}}
    pairs[7] = pairs[7] | {"preferred_output": [{"role": "assistant", "content": LONG}]}

    job = world.run(create(world, pairs))

    told = world.messages(job)
    assert job.status is Status.SUCCEEDED
    assert any("2 row(s) of the training file are longer" in text and "lines 5, 8" in text for text in told)
    assert any("1 row(s) of the training file have nothing to compare" in text and "lines 5" in text for text in told)


def test_a_file_whose_prompts_all_leave_no_room_fails_the_job(world: World, pairs: Rows) -> None:
    silent = pairs[0] | {"input": {"messages": [{"role": "user", "content": LONG}]}}

    job = world.run(create(world, [silent] * 10))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert "Every row of the training file has nothing to compare" in job.error.message


def test_a_batch_that_teaches_nothing_moves_nothing(world: World, pairs: Rows) -> None:
    silent = pairs[0] | {"input": {"messages": [{"role": "user", "content": LONG}]}}
    job = world.run(create(world, [*pairs[:16], *[silent] * 4], batch_size=1, n_epochs=1))

    losses = [metrics["train_loss"] for metrics in world.outcome(job).metrics]
    assert losses.count(0.0) == 4


def test_a_reference_that_was_kept_for_other_weights_is_told(
    world: World, pairs: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, pairs)
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        at_step(patch, 2, stopping.set)
        world.run(job, stopping=stopping)
    original = Reference.__init__

    def of_other_weights(*args: Any, **kwargs: Any) -> None:
        original(*args[:-1], b"other weights", **kwargs)

    monkeypatch.setattr(Reference, "__init__", of_other_weights)
    world.run(job)

    assert "What the reference said of the rows was kept for other weights or rows; it is computed anew" in (
        world.messages(job)
    )


def test_losses_that_stay_not_finite_fail_the_job(world: World, pairs: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caesura.training.preference.sigmoid_losses", lambda ratios, *_: ratios[:, 0] * float("nan"))
    job = world.run(create(world, pairs))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "not_finite"
    assert "up to step 3 (lines " in job.error.message


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_a_job_goes_on_from_a_tuned_model(world: World, training: Rows, pairs: Rows, method: str) -> None:
    start = tuned_model(world, training)
    rows = training if method == "supervised" else pairs
    # A rate at which nothing moves shows where the job began.
    job = world.run(world.create_job(rows, method=method, start=start, n_epochs=1, learning_rate_multiplier=1e-12))
    model = world.store.models.find(job.model_name)
    assert model is not None

    began, ended = (lora.from_files(get_files(world.storage, m.adapter)) for m in (start, model))

    assert (ended.rank, ended.alpha) == (began.rank, began.alpha)
    assert set(ended.weights) == set(began.weights)
    assert all(ended.weights[name].sub(weight).abs().max() < 1e-6 for name, weight in began.weights.items())
    assert max(weight.abs().max() for name, weight in ended.weights.items() if "lora_B" in name) > 1e-3


def test_a_job_whose_tuned_model_is_damaged_fails_and_says_so(world: World, training: Rows, pairs: Rows) -> None:
    start = tuned_model(world, training)
    job = create(world, pairs, start=start)
    path = world.settings.data_dir / "blobs" / start.adapter.key("adapter_model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BlobDamaged):
        get_files(world.storage, start.adapter)

    ended = world.run(job)

    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert str(world.settings.data_dir) not in ended.error.message
