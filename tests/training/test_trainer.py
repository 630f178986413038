from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch

from caesura.data.render import Example
from caesura.training.plan import Plan
from caesura.training.setup import Setup
from caesura.training.state import State, from_files
from caesura.training.trainer import StepResult, Trainer
from tests.training.conftest import MakeSetup, both_files, whole_files


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def make_trainer(setup: Setup, plan: Plan, state: State | None = None) -> Trainer:
    return Trainer(setup.base, setup.trained, setup.method, plan, state or setup.trained.fresh_state(7))


def files_of(trainer: Trainer) -> dict[str, bytes]:
    return whole_files(trainer.capture())


def test_a_step_is_a_function_of_the_state_it_starts_from(make_setup: MakeSetup) -> None:
    setup, plan = make_setup()
    trainer = make_trainer(setup, plan)
    for _ in range(4):
        trainer.step()
    state = trainer.capture()
    first = trainer.step(), files_of(trainer)

    again = make_trainer(setup, plan, from_files(*both_files(state)))

    assert (again.step(), files_of(again)) == first


def test_a_captured_state_does_not_change_with_the_steps_that_follow(make_setup: MakeSetup) -> None:
    trainer = make_trainer(*make_setup())
    trainer.step()
    state = trainer.capture()
    before = whole_files(state)
    trainer.step()

    assert whole_files(state) == before


def test_small_micro_batches_change_the_gradients_no_more_than_rounding_does(make_setup: MakeSetup) -> None:
    setup, plan = make_setup()
    whole = make_trainer(setup, plan).step()
    small_setup, small_plan = make_setup(micro_batch_tokens=40)
    small = make_trainer(small_setup, small_plan).step()

    assert small.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)


def train_to_the_end(trainer: Trainer, plan: Plan) -> tuple[list[StepResult], dict[str, bytes]]:
    results = [trainer.step() for _ in range(plan.num_steps - trainer.num_steps_done)]
    return results, files_of(trainer)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_a_resume_at_any_step_drops_what_an_undisturbed_run_drops(make_setup: MakeSetup, method: str) -> None:
    setup, plan = make_setup(method=method, lora_dropout=0.3, dropout_seed=5)
    trainer = make_trainer(setup, plan)
    states = [trainer.capture()]
    results = []
    for _ in range(plan.num_steps):
        results.append(trainer.step())
        states.append(trainer.capture())
    end = files_of(trainer)

    for step, state in enumerate(states):
        again = make_trainer(setup, plan, from_files(*both_files(state)))
        assert train_to_the_end(again, plan) == (results[step:], end)


def test_each_step_and_each_job_drops_something_else_and_validation_drops_nothing(make_setup: MakeSetup) -> None:
    # One batch an epoch, all rows of it, and a rate at which nothing moves: only what is dropped can differ.
    values = {"batch_size": 24, "n_epochs": 3, "learning_rate": 1e-12}
    setup, plan = make_setup(**values)
    state = setup.trained.fresh_state(7)
    for name, tensor in state.adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    of_plans: list[list[StepResult]] = []
    for dropping in ({}, {"lora_dropout": 0.3, "dropout_seed": 1}, {"lora_dropout": 0.3, "dropout_seed": 2}):
        setup, plan = make_setup(**values, **dropping)
        of_plans.append(train_to_the_end(make_trainer(setup, plan, state), plan)[0])

    without, *with_dropout = ([result.metrics["train_loss"] for result in results] for results in of_plans)
    assert without == pytest.approx([without[0]] * 3, rel=1e-6)
    dropped = [loss for losses in with_dropout for loss in losses]
    assert all(abs(a - b) > 1e-5 for a, b in combinations([without[0], *dropped], 2))
    for results in of_plans[1:]:
        for result, plain in zip(results, of_plans[0], strict=True):
            assert result.metrics["full_valid_loss"] == pytest.approx(plain.metrics["full_valid_loss"], rel=1e-6)


def test_a_plan_that_an_older_version_stored_trains_as_it_did(make_setup: MakeSetup) -> None:
    _, plan = make_setup()
    newer = ("adapter_type", "lora_dropout", "target_modules", "frozen_rank", "dropout_seed")
    stored = {name: value for name, value in plan.to_json().items() if name not in newer}

    assert Plan.from_json(stored) == plan
    assert (plan.adapter_type, plan.lora_dropout, plan.target_modules, plan.frozen_rank) == ("lora", 0, "all-linear", 0)


def test_an_epoch_shows_every_row_once(make_setup: MakeSetup) -> None:
    setup, plan = make_setup(batch_size=5)

    for first in (1, 1 + plan.steps_per_epoch):
        lines = [row.line for step in range(first, first + 5) for row in setup.method.rows_of_step(step)]
        assert sorted(lines) == list(range(1, 25))


def test_the_message_has_openais_words() -> None:
    metrics = {"train_loss": 0.574, "valid_loss": 0.61, "full_valid_loss": 0.6}
    result = StepResult(31, 90, applied=True, makes_checkpoint=False, metrics=metrics)

    assert result.message() == "Step 31/90: training loss=0.57, validation loss=0.61, full validation loss=0.60"
    assert result.data() == {"step": 31, "total_steps": 90, "learning_rate": 0.0, **metrics}


def test_short_rows_and_long_ones_are_attended_to_alike(make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    used: list[str] = []
    for max_eager_tokens in (0, 10_000):
        monkeypatch.setattr("caesura.training.logprobs.MAX_EAGER_TOKENS", max_eager_tokens)
        monkeypatch.setattr("caesura.training.setup.takes_segments", lambda _model: False)
        setup, plan = make_setup()
        losses.append(make_trainer(setup, plan).step().metrics["train_loss"])
        used.append(setup.base.model.config._attn_implementation)

    assert used == ["sdpa", "eager"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_one_after_another_and_padded_ones_are_trained_on_alike(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics: list[dict[str, float]] = []
    for flat in (True, False):
        monkeypatch.setattr("caesura.training.setup.takes_segments", lambda _model, flat=flat: flat)
        trainer = make_trainer(*make_setup(micro_batch_tokens=120))
        metrics.append(
            {f"{step}_{name}": value for step in (1, 2, 3) for name, value in trainer.step().metrics.items()}
        )

    # What differs is rounding alone.
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_tokens_that_are_not_the_assistants_count_what_the_job_says(make_setup: MakeSetup, weight: float) -> None:
    setup, plan = make_setup(prompt_loss_weight=weight, micro_batch_tokens=60)
    rows = setup.method.rows_of_step(1)
    trainer = make_trainer(setup, plan)

    total, num_tokens = 0.0, 0.0
    for row in rows:
        assert isinstance(row, Example)
        with torch.no_grad():
            logits_TV = setup.base.model(input_ids=torch.tensor([row.token_ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits_TV[:-1], torch.tensor(row.token_ids[1:]), reduction="none")
        weights = torch.tensor([1.0 if learned else weight for learned in row.loss_mask[1:]])
        total += (losses * weights).sum().item()
        num_tokens += weights.sum().item()

    assert trainer.step().metrics["train_loss"] == pytest.approx(total / num_tokens, rel=1e-5)


def test_losses_of_the_validation_file_are_of_the_assistants_tokens_alone(make_setup: MakeSetup) -> None:
    full_losses = set[float]()
    for weight in (0.0, 1.0):
        setup, _ = make_setup(prompt_loss_weight=weight)
        metrics = setup.method.validate_fully(setup.base.model, 12)
        assert metrics is not None
        full_losses.add(metrics["loss"])

    assert len(full_losses) == 1
