"""Whatever disturbs a job, it ends in the same bytes: by every method, from a base and from a tuned model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from caesura.jobs import Job, Status
from caesura.store.attempts import Attempts
from caesura.worker.saver import Saver
from tests.worker.disturb import (
    CRASHES,
    FEW_SHORT_ANSWERS,
    REINFORCEMENT,
    STEPS_PER_EPOCH,
    Crash,
    Rows,
    at_step,
    crash_in,
    create,
    pause_at,
    to_prompts,
    validated,
)
from tests.world import World, example_rows

MakeJob = Callable[..., Job]
#: Ends the training after step 9, and delivers the model of step 5.
STOPPED = {"early_stopping": {"patience": 2, "min_delta": 0.0}, "checkpoint_every": 3, "keep_best": True}
#: On some layers, and what goes into it is thinned out: so each step draws.
DROPPING = {"adapter": {"rank": 4, "dropout": 0.3, "target_modules": ["q_proj", "up_proj"]}}
#: Kind of job → its method, whether it goes on from a tuned model, and what it asks for beyond OpenAI's API. One that
#: goes on with an adapter of another kind keeps the tuned model's beside it.
KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "supervised": ("supervised", False, {}),
    "supervised, the best kept": ("supervised", False, {"keep_best": True, "checkpoint_every": 2}),
    "supervised, stopped early": ("supervised", False, STOPPED),
    "supervised, all weights": ("supervised", False, {"adapter": {"type": "full"}}),
    "supervised, all weights from a tuned model": ("supervised", True, {"adapter": {"type": "full"}}),
    "dpo": ("dpo", False, {}),
    "dpo from a tuned model": ("dpo", True, {}),
    "dpo beside a tuned model": ("dpo", True, DROPPING),
    "reinforcement": ("reinforcement", False, {}),
    "reinforcement beside a tuned model": ("reinforcement", True, DROPPING),
}
#: Of full validations, where the job goes by them: the best is neither the first nor the last.
LOSSES = {2: 0.6, 3: 0.6, 4: 0.4, 5: 0.5, 6: 0.55, 8: 0.5, 9: 0.52, 10: 0.45}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make_job(
    request: pytest.FixtureRequest,
    world: World,
    training: Rows,
    validation: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeJob:
    """Jobs of one kind, alike but for what is said."""
    method, from_tuned, extras = request.param
    if "keep_best" in extras:
        validated(monkeypatch, LOSSES)
    start = None
    if from_tuned:
        start = world.store.models.find(world.run(create(world, training, learning_rate_multiplier=3.0)).model_name)
        assert start is not None
    if method == "dpo":
        training = example_rows("preference_train.jsonl")[: len(training)]
        validation = example_rows("preference_validation.jsonl")[: len(validation)]
    if method == "reinforcement":
        prompts = to_prompts(training), to_prompts(validation)
        given = partial(create, world, *prompts, method=method, start=start, body=REINFORCEMENT, **FEW_SHORT_ANSWERS)
    else:
        given = partial(create, world, training, validation, method=method, start=start)
    return lambda limits=None, **values: given(extras={**extras, **(limits or {})}, **values)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: World, make_job: MakeJob) -> None:
    first, second, other = (world.run(make_job(seed=seed)) for seed in (1, 1, 2))

    assert world.outcome(first) == world.outcome(second)
    assert world.outcome(first).adapter != world.outcome(other).adapter


@pytest.mark.parametrize("step", [1, 3, STEPS_PER_EPOCH, 9])
def test_a_paused_and_resumed_job_ends_in_the_bytes_of_an_undisturbed_one(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    pause_at(monkeypatch, world, job, step)

    if step < undisturbed.step:
        assert world.run(job).status is Status.PAUSED
        world.store.jobs.resume(job.id)
    world.run(job)  # a pause that was asked for in the last step is overtaken by the end

    assert world.outcome(job) == world.outcome(undisturbed)


@pytest.mark.parametrize("limits", [{"max_minutes": 1e-9}, {"max_tokens": 1}], ids=str)
def test_a_job_that_limits_paused_ends_in_the_bytes_of_one_without_them(
    world: World, make_job: MakeJob, limits: dict[str, Any]
) -> None:
    undisturbed = world.run(make_job())
    job = make_job(limits)
    paused_at: list[int] = []
    while world.run(job).status is Status.PAUSED:
        paused_at.append(world.store.jobs.get(job.id).step)
        world.store.jobs.resume(job.id)

    assert world.outcome(job) == world.outcome(undisturbed)
    assert paused_at == ([1] if "max_tokens" in limits else list(range(1, undisturbed.step)))


def test_a_stopping_server_gives_the_job_back_and_nothing_differs_in_the_end(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    stopping = threading.Event()
    at_step(monkeypatch, 4, stopping.set)

    assert world.run(job, stopping=stopping).status is Status.QUEUED
    assert world.store.jobs.list_states(job.id)[0].step == 4
    world.run(job)

    assert world.outcome(job) == world.outcome(undisturbed)


@pytest.mark.parametrize(("owner", "name", "after", "call"), CRASHES.values(), ids=CRASHES.keys())
def test_a_job_whose_worker_died_ends_in_the_bytes_of_an_undisturbed_one(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool, call: int
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    with monkeypatch.context() as patch:
        crash_in(patch, owner, name, after=after, call=call)
        with pytest.raises(Crash):
            world.run(job, "worker-1")
    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")
    world.run(job, "worker-2")

    assert world.outcome(job) == world.outcome(undisturbed)
    steps = [metrics["step"] for metrics in world.store.jobs.list_metrics(job.id)]
    assert steps == list(range(1, undisturbed.step + 1))


def test_a_job_that_was_saved_at_the_step_that_ends_it_goes_on_to_its_end(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "due", True)
        patch.setattr(Saver, "save_in_passing", Saver._try_to_save)
        crash_in(patch, Attempts, "finish", after=False)
        with pytest.raises(Crash):
            world.run(job, "worker-1")
    assert world.store.jobs.list_states(job.id)[0].step == undisturbed.step
    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")
    world.run(job, "worker-2")

    assert world.outcome(job) == world.outcome(undisturbed)


def test_a_damaged_training_state_is_told_and_the_one_before_it_serves(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    for step in (3, 6):
        stopping = threading.Event()
        with monkeypatch.context() as patch:
            at_step(patch, step, stopping.set)
            world.run(job, stopping=stopping)
    newest, _ = world.store.jobs.list_states(job.id)
    path = world.settings.data_dir / "blobs" / newest.optimizer.key("optimizer.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    world.run(job)

    assert world.outcome(job) == world.outcome(undisturbed)
    assert "The training state saved at step 6 is damaged; the one before it is used" in world.messages(job)


def test_another_number_of_threads_comes_close(world: World, training: Rows) -> None:
    one = world.run(create(world, training))
    world.settings = world.settings.model_copy(update={"threads": 2})
    two = world.run(create(world, training))

    losses_of_one, losses_of_two = (
        [metrics["train_loss"] for metrics in world.store.jobs.list_metrics(job.id)][:3] for job in (one, two)
    )
    assert two.plan is not None
    assert two.plan["threads"] == 2
    assert losses_of_two == pytest.approx(losses_of_one, rel=1e-5)
