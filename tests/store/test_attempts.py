from __future__ import annotations

from collections.abc import Callable

import pytest

from caesura.errors import LeaseLost
from caesura.jobs import Artifact, Job, JobError, Lease, Level, Reason, Status
from caesura.storage import Blob
from caesura.store import Store
from caesura.store.files import new_file
from caesura.store.rows import Telling
from tests.store.conftest import MakeJob, make_state, messages, step_telling

Claim = Callable[..., Lease]
RESULTS = new_file(Blob("files/results", 1, "00"), "step_metrics.csv", "fine-tune-results")


def finish(store: Store, lease: Lease, step: int = 9) -> None:
    store.attempts.finish(lease, step, Artifact("adapters/final", {}), [RESULTS], trained_tokens=100)


#: Everything a worker may write.
WRITES: dict[str, Callable[[Store, Lease], object]] = {
    "renew": lambda store, lease: store.attempts.renew(lease, 60),
    "status": lambda store, lease: store.attempts.status(lease),
    "set_plan": lambda store, lease: store.attempts.set_plan(lease, {"n_epochs": 1}),
    "tell": lambda store, lease: store.attempts.tell(lease, Telling("hello")),
    "record_steps": lambda store, lease: store.attempts.record_steps(
        lease, 7, [step_telling(7)], 0, [{"step": 7, "split": "train"}]
    ),
    "save": lambda store, lease: store.attempts.save(lease, make_state(7), Reason.EPOCH),
    "pause": lambda store, lease: store.attempts.pause(lease, make_state(7)),
    "pause_itself": lambda store, lease: store.attempts.pause_itself(lease, make_state(7), Telling("enough")),
    "release": lambda store, lease: store.attempts.release(lease, make_state(7)),
    "finish": finish,
    "fail": lambda store, lease: store.attempts.fail(lease, JobError("server_error", "late")),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_worker_whose_job_was_claimed_anew_can_write_nothing(
    store: Store, make_job: MakeJob, claim: Claim, write: Callable[[Store, Lease], object]
) -> None:
    late = claim(job := make_job(), "worker-1")
    store.recovery.worker_gone("worker-1", "killed")
    claim(job, "worker-2")
    before = _everything(store, job)

    with pytest.raises(LeaseLost):
        write(store, late)

    assert _everything(store, job) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_worker_whose_job_was_cancelled_can_write_nothing(
    store: Store, make_job: MakeJob, claim: Claim, write: Callable[[Store, Lease], object]
) -> None:
    lease = claim(job := make_job())
    store.jobs.cancel(job.id)
    before = _everything(store, job)

    with pytest.raises(LeaseLost):
        write(store, lease)

    assert _everything(store, job) == before


def _everything(store: Store, job: Job) -> object:
    files, _ = store.files.list(purpose=None, after=None, limit=100, descending=False)
    rollouts, _ = store.rollouts.list(job.id, limit=100)
    states, models = store.jobs.list_states(job.id), store.models.list()
    return store.jobs.get(job.id), messages(store, job), states, models, files, rollouts


def test_the_start_is_told_once_however_often_the_job_is_claimed(store: Store, make_job: MakeJob, claim: Claim) -> None:
    claim(job := make_job(), "worker-1")
    store.recovery.worker_gone("worker-1", "killed")
    claim(job, "worker-2")

    assert messages(store, job).count("Fine-tuning job started") == 1
    assert store.jobs.get(job.id).attempt == 2


def test_a_step_is_told_once_and_as_it_was_first(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.attempts.record_steps(lease, 2, [step_telling(1), step_telling(2, loss=2.0)], 0)
    store.attempts.record_steps(lease, 3, [step_telling(2, loss=9.0), step_telling(3)], 0)

    assert [data["train_loss"] for data in store.jobs.list_metrics(job.id)] == [1.0, 2.0, 1.0]


def test_replayed_steps_do_not_take_the_progress_back(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.attempts.record_steps(lease, 5, [step_telling(5)], 0)
    store.attempts.record_steps(lease, 3, [step_telling(3)], 0)

    assert store.jobs.get(job.id).step == 5


def test_the_plan_of_the_first_attempt_holds(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(make_job())

    assert store.attempts.set_plan(lease, {"threads": 2}) == {"threads": 2}
    assert store.attempts.set_plan(lease, {"threads": 1}) == {"threads": 2}


def test_the_last_two_training_states_are_kept_and_the_blobs_of_the_others_given_free(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())

    freed = [store.attempts.save(lease, make_state(step)) for step in (1, 2, 3)]

    assert [state.step for state in store.jobs.list_states(job.id)] == [3, 2]
    assert freed == [[], [], ["adapters/a1/adapter_model.safetensors", "optimizers/a1/optimizer.safetensors"]]


def test_the_adapter_of_a_checkpoint_is_not_given_free(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(make_job())
    store.attempts.save(lease, make_state(1), Reason.EPOCH)
    store.attempts.save(lease, make_state(2))

    assert store.attempts.save(lease, make_state(3)) == ["optimizers/a1/optimizer.safetensors"]


def test_a_checkpoint_has_the_metrics_that_were_told_of_its_step(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.attempts.record_steps(lease, 4, [step_telling(4, loss=0.5)], 0)
    store.attempts.save(lease, make_state(4), Reason.EPOCH)

    model = store.models.find(f"{job.model_name}:ckpt-step-4")

    assert model is not None
    assert model.metrics == {"step": 4, "train_loss": 0.5}
    assert messages(store, job)[-1] == f"Checkpoint created at step 4 with Snapshot ID: {model.name}"


def test_a_replayed_epoch_end_makes_no_second_checkpoint(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.attempts.save(lease, make_state(4, "a"), Reason.EPOCH)
    before = store.models.list(), messages(store, job)
    store.attempts.save(lease, make_state(4, "b"), Reason.EPOCH)

    assert (store.models.list(), messages(store, job)) == before


def test_the_models_of_the_last_three_epochs_are_kept_and_those_of_pauses(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    job = make_job()
    lease = claim(job)
    store.jobs.pause(job.id)
    assert store.attempts.pause(lease, make_state(1))
    store.jobs.resume(job.id)
    lease = claim(job)
    for step in (2, 4, 6):
        store.attempts.save(lease, make_state(step), Reason.EPOCH)
    finish(store, lease, step=8)

    models, _ = store.models.list_of_job(job.id, after=None, limit=10)
    assert [(model.step, model.reason) for model in models] == [
        (8, Reason.FINAL),
        (6, Reason.EPOCH),
        (4, Reason.EPOCH),
        (1, Reason.PAUSE),
    ]


def test_checkpoints_between_epochs_and_those_of_epochs_do_not_push_out_each_other(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    job = make_job()
    lease = claim(job)
    for step in range(1, 19):
        store.attempts.save(lease, make_state(step), Reason.STEP if step % 4 else Reason.EPOCH)

    models, _ = store.models.list_of_job(job.id, after=None, limit=99)
    assert [model.step for model in models] == [18, 17, 16, 15, 12, 8]


def test_the_final_model_stays_though_its_step_is_not_the_last(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    for step in (2, 4, 6, 8):
        store.attempts.save(lease, make_state(step), Reason.EPOCH)
    finish(store, lease, step=1)

    models, _ = store.models.list_of_job(job.id, after=None, limit=10)
    assert [(model.step, model.reason) for model in models] == [
        (8, Reason.EPOCH),
        (6, Reason.EPOCH),
        (1, Reason.FINAL),
    ]


def test_a_checkpoint_that_a_pause_meets_is_kept_as_the_pauses(store: Store, make_job: MakeJob, claim: Claim) -> None:
    job = make_job()
    lease = claim(job)
    store.attempts.save(lease, make_state(2), Reason.EPOCH)
    store.jobs.pause(job.id)
    store.attempts.pause(lease, make_state(2))

    model = store.models.find(job.checkpoint_name(2))
    assert model is not None
    assert model.reason is Reason.PAUSE


def test_a_paused_job_has_state_and_checkpoint_and_neither_worker_nor_estimate(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    store.attempts.record_steps(lease, 3, [step_telling(3)], 123)
    store.jobs.pause(job.id)

    assert store.attempts.pause(lease, make_state(3))

    job = store.jobs.get(job.id)
    assert (job.status, job.worker, job.estimated_finish) == (Status.PAUSED, None, None)
    assert [state.step for state in store.jobs.list_states(job.id)] == [3]
    assert store.models.find(job.checkpoint_name(3)) is not None
    assert messages(store, job)[-3:] == [
        "Pausing fine-tuning job",
        f"Checkpoint created at step 3 with Snapshot ID: {job.checkpoint_name(3)}",
        "Fine-tuning job paused",
    ]


def test_a_finished_job_has_its_model_its_result_file_and_no_training_state(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    store.attempts.save(lease, make_state(8))
    finish(store, lease)

    job = store.jobs.get(job.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == (Status.SUCCEEDED, job.model_name, 100)
    assert job.finished_at is not None
    assert store.files.get(job.result_files[0]).filename == "step_metrics.csv"
    assert store.jobs.list_states(job.id) == []
    assert messages(store, job)[-2:] == [
        f"New fine-tuned model created: {job.model_name}",
        "The job has successfully completed",
    ]


def test_a_job_that_ends_while_a_pause_is_asked_for_ends(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.jobs.pause(job.id)
    finish(store, lease)

    assert store.jobs.get(job.id).status is Status.SUCCEEDED


def test_a_released_job_waits_in_the_queue_with_its_state(store: Store, make_job: MakeJob, claim: Claim) -> None:
    lease = claim(job := make_job())
    store.attempts.release(lease, make_state(5))

    assert store.jobs.get(job.id).status is Status.QUEUED
    assert [state.step for state in store.jobs.list_states(job.id)] == [5]


def test_a_cancelled_job_keeps_its_checkpoints_and_no_training_state(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    store.attempts.save(lease, make_state(4), Reason.EPOCH)
    store.jobs.cancel(job.id)

    assert store.jobs.list_states(job.id) == []
    assert store.models.find(job.checkpoint_name(4)) is not None


def validated(store: Store, lease: Lease, step: int, reward: float) -> None:
    """A step of reinforcement whose validation came to `reward`."""
    data = {"step": step, "full_valid_mean_reward": reward, "timing": {"step": {"eval": 1.0}}}
    store.attempts.record_steps(lease, step, [Telling("told", data=data, type="metrics", key=f"step:{step}")], 0)
    store.attempts.save(lease, make_state(step), Reason.VALIDATION)


def test_the_models_with_the_three_best_validation_rewards_are_kept_and_those_of_pauses(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    job = make_job()
    lease = claim(job)
    validated(store, lease, 1, 0.1)
    store.jobs.pause(job.id)
    assert store.attempts.pause(lease, make_state(1))  # what a pause has made stays, however bad it is
    store.jobs.resume(job.id)
    lease = claim(job)
    for step, reward in ((2, 0.5), (3, 0.9), (4, 0.2), (5, 0.5), (6, 0.5)):
        validated(store, lease, step, reward)

    models, _ = store.models.list_of_job(job.id, after=None, limit=10)
    assert [(model.step, model.reason) for model in models] == [
        (6, Reason.VALIDATION),
        (5, Reason.VALIDATION),
        (3, Reason.VALIDATION),
        (1, Reason.PAUSE),
    ]
    assert models[2].metrics == {"step": 3, "full_valid_mean_reward": 0.9}
    best = store.models.best_of_job(job.id)
    assert best is not None
    assert best.step == 3

    finish(store, lease, step=7)
    models, _ = store.models.list_of_job(job.id, after=None, limit=10)
    assert [model.step for model in models] == [7, 6, 5, 3, 1]


def test_of_two_models_with_the_best_reward_the_later_one_is_the_best(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    for step, reward in ((1, 0.9), (2, 0.9), (3, 0.1)):
        validated(store, lease, step, reward)

    best = store.models.best_of_job(job.id)
    assert best is not None
    assert best.step == 2


def test_a_final_model_may_be_a_checkpoint_again_and_its_blobs_stay(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    job = make_job()
    lease = claim(job)
    validated(store, lease, 1, 0.9)
    best = store.models.best_of_job(job.id)
    assert best is not None
    store.attempts.finish(lease, best.step, best.adapter, [RESULTS], trained_tokens=1)
    assert [model.name for model in store.models.list_of_job(job.id, after=None, limit=10)[0]] == [
        job.model_name,
        best.name,
    ]

    store.models.delete(best.name)

    final = store.models.find(job.model_name)
    assert final is not None
    assert final.metrics == {"step": 1, "full_valid_mean_reward": 0.9}
    assert set(final.adapter.blobs()) <= store.recovery.referenced_blobs()


def test_a_job_that_has_no_validation_has_no_best_model(store: Store, make_job: MakeJob, claim: Claim) -> None:
    job = make_job()
    store.attempts.save(claim(job), make_state(1), Reason.EPOCH)

    assert store.models.best_of_job(job.id) is None


@pytest.mark.parametrize("asked", [False, True], ids=["by itself", "while a pause was asked for"])
def test_a_job_may_pause_itself_and_says_why(store: Store, make_job: MakeJob, claim: Claim, asked: bool) -> None:
    job = make_job()
    lease = claim(job)
    if asked:
        store.jobs.pause(job.id)

    store.attempts.pause_itself(lease, make_state(5), Telling("the grader failed", Level.WARN, key="grader:5"))

    paused = store.jobs.get(job.id)
    assert (paused.status, paused.worker) == (Status.PAUSED, None)
    told = messages(store, job)[1:]
    assert told.count("Pausing fine-tuning job") == 1
    assert [words for words in told if words != "Pausing fine-tuning job"][-3:] == [
        "the grader failed",
        f"Checkpoint created at step 5 with Snapshot ID: {job.checkpoint_name(5)}",
        "Fine-tuning job paused",
    ]
    assert [state.step for state in store.jobs.list_states(job.id)] == [5]
    events, _ = store.jobs.list_events(job.id, after=None, limit=100)
    assert [event.level for event in events if event.message == "the grader failed"] == ["warn"]
    with pytest.raises(LeaseLost):
        store.attempts.status(lease)
    assert store.jobs.resume(job.id).status is Status.QUEUED


def test_a_release_finishes_the_pause_that_was_asked_for_a_moment_ago(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    store.jobs.pause(job.id)
    store.attempts.release(lease, make_state(5))

    assert store.jobs.get(job.id).status is Status.PAUSED
    assert store.models.find(job.checkpoint_name(5)) is not None
    assert messages(store, job)[-1] == "Fine-tuning job paused"


def test_where_the_last_states_are_damaged_what_is_saved_before_them_is_the_newest(
    store: Store, make_job: MakeJob, claim: Claim
) -> None:
    lease = claim(job := make_job())
    for step in (8, 10):
        store.attempts.save(lease, make_state(step))
    store.recovery.worker_gone("worker-1", "killed")
    lease = claim(job, "worker-2")  # it finds both of them damaged, and begins anew
    freed = [key for step in (3, 4) for key in store.attempts.save(lease, make_state(step, "b"))]

    assert [state.step for state in store.jobs.list_states(job.id)] == [4, 3]
    assert sorted(freed) == sorted(
        key
        for step in (8, 10)
        for state in [make_state(step)]
        for key in state.adapter.blobs() + state.optimizer.blobs()
    )


@pytest.mark.parametrize("gone", ["deleted", "dropped for better ones"])
def test_a_pause_leaves_its_checkpoint_even_where_the_steps_model_is_gone(
    store: Store, make_job: MakeJob, claim: Claim, gone: str
) -> None:
    lease = claim(job := make_job())
    if gone == "deleted":
        validated(store, lease, 4, 0.1)
        store.models.delete(job.checkpoint_name(4))
    else:
        for step, reward in ((1, 0.5), (2, 0.9), (3, 0.5), (4, 0.1)):
            validated(store, lease, step, reward)
    assert store.models.find(job.checkpoint_name(4)) is None
    store.jobs.pause(job.id)
    assert store.attempts.pause(lease, paused_at := make_state(4, "again"))

    model = store.models.find(job.checkpoint_name(4))
    assert model is not None
    assert (model.reason, model.adapter) == (Reason.PAUSE, paused_at.adapter)
