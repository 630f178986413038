from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from caesura.errors import DatabaseUnavailable, LeaseLost
from caesura.jobs import Artifact, Lease, Reason, Status
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import get_files
from caesura.store.attempts import Attempts
from caesura.training.trainer import StepResult, Trainer
from caesura.worker import keeper
from caesura.worker.keeper import Keeper
from tests.worker.disturb import NUM_STEPS, STEPS_PER_EPOCH, Crash, Rows, at_step, crash_in, create, pause_at
from tests.world import World, wait_until


def test_a_job_runs_to_its_end(world: World, training: Rows, validation: Rows) -> None:
    job = world.run(create(world, training, validation))

    assert job.status is Status.SUCCEEDED
    assert (job.fine_tuned_model, job.step, job.attempt) == (job.model_name, NUM_STEPS, 1)
    assert job.finished_at is not None
    assert job.estimated_finish is None


def test_the_events_are_openais_in_their_order(world: World, training: Rows) -> None:
    job = world.run(create(world, training))
    told = world.messages(job)

    assert told[:4] == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file: file-training",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert told[4].startswith("The training file has ")
    assert [message.split(":")[0] for message in told[5:10]] == [f"Step {step}/{NUM_STEPS}" for step in range(1, 6)]
    assert told[10] == f"Checkpoint created at step 5 with Snapshot ID: {job.checkpoint_name(5)}"
    assert told[-2:] == [f"New fine-tuned model created: {job.model_name}", "The job has successfully completed"]


def test_the_loss_falls(world: World, training: Rows) -> None:
    job = world.run(create(world, training, learning_rate_multiplier=3.0))
    losses = [metrics["train_loss"] for metrics in world.outcome(job).metrics]

    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_validation_is_measured_in_part_every_ten_steps_and_in_full_at_every_epochs_end(
    world: World, training: Rows, validation: Rows
) -> None:
    job = world.run(world.create_job(training, validation, batch_size=1, n_epochs=1))
    metrics = world.outcome(job).metrics

    assert [data["step"] for data in metrics if "valid_loss" in data] == [10, 20]
    assert [data["step"] for data in metrics if "full_valid_loss" in data] == [20]
    assert f"validation loss={metrics[9]['valid_loss']:.2f}" in world.messages(job)[15]
    assert f"full validation loss={metrics[19]['full_valid_loss']:.2f}" in "".join(world.messages(job))


def test_the_result_file_has_a_row_a_step_and_empty_cells_where_nothing_was_measured(
    world: World, training: Rows, validation: Rows
) -> None:
    outcome = world.outcome(world.run(create(world, training, validation)))
    header, first, *_, last = outcome.results[0].splitlines()

    assert header == (
        "step,train_loss,train_accuracy,train_mean_token_accuracy,valid_loss,valid_mean_token_accuracy,"
        "full_valid_loss,full_valid_mean_token_accuracy"
    )
    accuracy = outcome.metrics[0]["train_mean_token_accuracy"]
    assert first == f"1,{outcome.metrics[0]['train_loss']},{accuracy},{accuracy},,,,"
    assert last.startswith(f"{NUM_STEPS},")
    assert ",," not in last


def test_trained_tokens_are_the_tokens_of_the_rows_times_the_epochs(world: World, training: Rows) -> None:
    one = world.run(world.create_job(training, n_epochs=1, batch_size=20))
    three = world.run(world.create_job(training, n_epochs=3, batch_size=20))

    assert one.trained_tokens is not None
    assert three.trained_tokens == 3 * one.trained_tokens


def test_auto_hyperparameters_are_resolved_by_the_first_attempt(world: World, training: Rows) -> None:
    job = world.run(world.create_job(training, n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"))

    assert job.plan is not None
    resolved = {name: job.plan[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}
    assert resolved == {"n_epochs": 5, "batch_size": 1, "learning_rate_multiplier": 0.35}


def test_a_pause_waits_for_the_step_in_hand_and_for_no_other(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    pause_at(monkeypatch, world, job, 3)
    paused = world.run(job)

    assert (paused.status, paused.step) == (Status.PAUSED, 3)
    assert [state.step for state in world.store.jobs.list_states(job.id)] == [3]


def test_a_pause_leaves_a_checkpoint_with_the_metrics_of_its_step(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    pause_at(monkeypatch, world, job, 3)
    world.run(job)

    model = world.store.models.find(job.checkpoint_name(3))
    assert model is not None
    assert model.metrics["train_loss"] == world.store.jobs.list_metrics(job.id)[2]["train_loss"]
    assert set(get_files(world.storage, model.adapter)) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_pause_asked_for_in_the_last_step_is_overtaken_by_the_end(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    pause_at(monkeypatch, world, job, NUM_STEPS)

    assert world.run(job).status is Status.SUCCEEDED


def test_a_worker_that_died_after_the_end_has_ended_the_job(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    with monkeypatch.context() as patch:
        crash_in(patch, Attempts, "finish", after=True)
        with pytest.raises(Crash):
            world.run(job, "worker-1")
    world.store.recovery.worker_gone("worker-1", "killed by SIGKILL")

    assert world.store.jobs.get(job.id).status is Status.SUCCEEDED


def test_training_states_are_saved_in_passing_when_their_interval_is_over(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"save_interval_s": 1e-6})
    job = create(world, training)
    saved = threading.Event()
    original = Attempts.save

    def save(attempts: Attempts, lease: Lease, state: Any, reason: Reason | None = None) -> list[str]:
        freed = original(attempts, lease, state, reason)
        if reason is None:
            saved.set()
        return freed

    def wait_and_die() -> None:
        assert saved.wait(60)
        raise Crash

    monkeypatch.setattr(Attempts, "save", save)
    at_step(monkeypatch, 3, wait_and_die)
    with pytest.raises(Crash):
        world.run(job, "worker-1")

    wait_until(lambda: bool(world.store.jobs.list_states(job.id)), "a state saved in passing")
    assert world.store.jobs.list_states(job.id)[0].step in (1, 2)


def test_a_state_that_is_saved_in_passing_comes_after_the_metrics_of_its_steps(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"save_interval_s": 1e-6})
    job = create(world, training)
    saved = threading.Event()
    original = Attempts.save

    def save(*args: Any, **kwargs: Any) -> list[str]:
        freed = original(*args, **kwargs)
        saved.set()
        return freed

    def wait_and_die() -> None:
        assert saved.wait(60)
        raise Crash

    monkeypatch.setattr(keeper, "BEAT_S", 3600.0)  # it tells nothing by itself
    monkeypatch.setattr(Attempts, "save", save)
    monkeypatch.setattr(Keeper, "__exit__", lambda keeper, *_: keeper._ended.set())
    at_step(monkeypatch, 2, wait_and_die)
    with pytest.raises(Crash):
        world.run(job, "worker-1")

    (state,) = world.store.jobs.list_states(job.id)
    assert [data["step"] for data in world.store.jobs.list_metrics(job.id)] == list(range(1, state.step + 1))


def test_a_cancelled_job_is_left_and_keeps_its_checkpoints(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    at_step(monkeypatch, STEPS_PER_EPOCH + 2, lambda: world.store.jobs.cancel(job.id) and None)

    ended = world.run(job)

    assert (ended.status, ended.fine_tuned_model) == (Status.CANCELLED, None)
    assert [model.step for model in world.store.models.list()] == [STEPS_PER_EPOCH]


def test_losses_that_stay_not_finite_fail_the_job_and_name_its_lines(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_logprobs: Any, _mask: Any, _num_tokens: float) -> Any:
        return (_logprobs * float("nan")).sum()

    monkeypatch.setattr("caesura.training.supervised.cross_entropy", explode)
    job = world.run(create(world, training))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "not_finite"
    assert "up to step 3 (lines " in job.error.message
    assert world.messages(job)[-4:-1] == [f"Step {step}/10: not applied" for step in (1, 2, 3)]


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_the_job_goes_on(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode_once(trainer: Trainer) -> StepResult:
        if trainer.num_steps_done == 4:
            with monkeypatch.context() as patch:
                patch.setattr("caesura.training.supervised.cross_entropy", lambda p, m, n: (p * float("inf")).sum())
                return original(trainer)
        return original(trainer)

    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", explode_once)
    job = world.run(create(world, training))

    assert job.status is Status.SUCCEEDED
    assert [data["step"] for data in world.outcome(job).metrics if "train_loss" not in data] == [5]


def test_rows_longer_than_the_context_are_truncated_and_told_by_their_lines(world: World, training: Rows) -> None:
    long = "many words " * 600
    training[4] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": long}]}
    training[7] = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "Hi"}]}

    job = world.run(create(world, training))

    told = world.messages(job)
    assert job.status is Status.SUCCEEDED
    assert any("2 row(s) of the training file are longer" in text and "lines 5, 8" in text for text in told)
    assert any("1 row(s) of the training file have no assistant token" in text and "lines 8" in text for text in told)


def test_a_file_without_a_token_to_learn_fails_the_job(world: World) -> None:
    long = "many words " * 600
    row = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "Hi"}]}

    job = world.run(create(world, [row] * 10))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")


def test_a_base_that_left_the_settings_fails_the_job_by_its_name(world: World, training: Rows) -> None:
    job = create(world, training)
    world.settings = world.settings.model_copy(update={"models": {}})

    ended = world.run(job)

    assert ended.error is not None
    assert "'micro'" in ended.error.message


def test_a_base_that_cannot_be_loaded_fails_the_job_without_showing_a_path(
    world: World, training: Rows, tmp_path: Any
) -> None:
    missing = {"micro": {"path": str(tmp_path / "nowhere")}}
    world.settings = world.settings.model_validate(world.settings.model_dump() | {"models": missing})

    ended = world.run(create(world, training))

    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.code == "model_not_available"
    assert str(tmp_path) not in ended.error.message


def test_a_resume_elsewhere_warns_that_bytes_may_differ(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        at_step(patch, 2, stopping.set)
        world.run(job, stopping=stopping)
    here = {"caesura": "0", "torch": "9.9", "transformers": "0", "machine": "riscv", "processor": "abacus"}
    monkeypatch.setattr("caesura.worker.attempt.environment", lambda _device: here)

    world.run(job)

    assert any("its bytes may differ" in text and "9.9" in text for text in world.messages(job))


def test_a_late_worker_loses_its_lease_and_changes_nothing(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(world, training)
    before: list[object] = []

    def lose() -> None:
        world.store.recovery.worker_gone("worker-1", "its lease ran out")
        assert world.store.attempts.claim(job.id, "worker-2", 60) is not None
        before.append((world.store.jobs.get(job.id), world.messages(job), world.store.models.list()))

    at_step(monkeypatch, 3, lose)
    world.run(job, "worker-1")

    assert [(world.store.jobs.get(job.id), world.messages(job), world.store.models.list())] == before


def test_a_job_that_is_taken_is_left_alone(world: World, training: Rows) -> None:
    job = create(world, training)
    world.store.attempts.claim(job.id, "worker-1", 60)
    before = world.store.jobs.get(job.id)

    assert world.run(job, "worker-2") == before


def test_the_database_being_away_for_a_moment_does_not_end_an_attempt(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Attempts.record_steps
    failures = [3]

    def record_steps(*args: Any, **kwargs: Any) -> None:
        if failures[0] and threading.current_thread().name == "keeper":
            failures[0] -= 1
            raise DatabaseUnavailable
        original(*args, **kwargs)

    monkeypatch.setattr(keeper, "BEAT_S", 0.001)
    monkeypatch.setattr(Attempts, "record_steps", record_steps)
    job = world.run(create(world, training))

    assert [metrics["step"] for metrics in world.outcome(job).metrics] == list(range(1, NUM_STEPS + 1))
    assert failures == [0]


def test_a_lost_lease_ends_in_an_exception_at_once(world: World, training: Rows) -> None:
    with pytest.raises(LeaseLost):
        world.store.attempts.finish(
            Lease(create(world, training).id, "not the token"),
            1,
            Artifact("a", {}),
            [],
            0,
        )


def test_no_thread_of_an_attempt_is_left_when_it_has_lost_its_lease(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread in native code while the interpreter ends aborts the process."""
    world.settings = world.settings.model_copy(update={"save_interval_s": 1e-6})
    job = create(world, training)
    saving, lost = threading.Event(), threading.Event()
    original = Attempts.save

    def save(*args: Any, **kwargs: Any) -> list[str]:
        saving.set()
        assert lost.wait(60)
        return original(*args, **kwargs)

    def lose() -> None:
        assert saving.wait(60)
        world.store.jobs.cancel(job.id)
        threading.Timer(0.3, lost.set).start()

    monkeypatch.setattr(Attempts, "save", save)
    monkeypatch.setattr(keeper, "BEAT_S", 0.01)
    at_step(monkeypatch, 2, lose)
    world.run(job)

    assert not {thread.name for thread in threading.enumerate()} & {"saver", "keeper"}


def test_a_training_file_whose_blob_is_gone_fails_the_job_at_once(world: World, training: Rows) -> None:
    job = create(world, training)
    world.storage.delete(job.training_blob)

    ended = world.run(job)

    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert job.training_blob in ended.error.message


def test_a_base_without_a_chat_template_fails_the_job_by_its_name(
    world: World, training: Rows, micro_model: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(micro_model, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template.jinja"))
    models = {"micro": {"path": str(plain)}}
    world.settings = Settings.model_validate(world.settings.model_dump() | {"models": models})

    ended = world.run(create(world, training))
    texts = [{"prompt": f"{number} and 1 is", "completion": f" {number + 1}."} for number in range(12)]
    told = world.run(create(world, texts))

    assert ended.error is not None
    assert ended.error.code == "unsupported_model"
    assert "'micro' has no chat template" in ended.error.message
    assert told.status is Status.SUCCEEDED, told.error


def test_the_report_of_the_data_is_told_once_and_read_by_programs(
    world: World, training: Rows, validation: Rows
) -> None:
    job = create(world, [*training, training[0]], [*validation, training[1]])
    ended = world.run(job)

    report = world.report(ended)
    assert report["ok"]
    first, second = report["files"]
    assert (first["file"], first["rows"], first["error"]) == (job.training_file, len(training) + 1, None)
    assert first["tokens"]["total"] > first["tokens"]["learned"] > 0
    assert first["repeated"] == {"rows": 1, "lines": [len(training) + 1]}
    assert second["in_training_file"] == {"rows": 1, "lines": [len(validation) + 1]}
    told = world.messages(job)
    assert told.count(f"1 row(s) of the training file repeat an earlier one: lines {len(training) + 1}") == 1
    assert sum(message.startswith("The training file has ") for message in told) == 1
    assert sum(message.startswith("The validation file has ") for message in told) == 1


def test_rows_that_the_template_refuses_are_all_named(
    world: World, training: Rows, micro_model: Path, tmp_path: Path
) -> None:
    picky = shutil.copytree(micro_model, tmp_path / "picky")
    template = (picky / "chat_template.jinja").read_text()
    refusal = "{% if 'never' in messages[0].content %}{{ raise_exception('Not that word.') }}{% endif %}"
    (picky / "chat_template.jinja").write_text(refusal + template)
    models = {"micro": {"path": str(picky)}}
    world.settings = Settings.model_validate(world.settings.model_dump() | {"models": models})
    row = {"messages": [{"role": "user", "content": "never"}, {"role": "assistant", "content": "x"}]}
    ended = world.run(create(world, [row, *training, row]))

    assert ended.error is not None
    assert ended.error.code == "invalid_training_file"
    last = len(training) + 2
    assert all(f"Example {line} cannot be rendered" in ended.error.message for line in (1, last))
    (file,) = world.report(ended)["files"]
    assert [problem["line"] for problem in file["problems"]] == [1, last]


def test_the_context_window_of_the_first_attempt_holds(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = world.run(create(world, training))
    job = create(world, training)
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        at_step(patch, 2, stopping.set)
        world.run(job, stopping=stopping)
    models = {"micro": {"path": world.settings.models["micro"].path, "context_window": 20}}
    world.settings = Settings.model_validate(world.settings.model_dump() | {"models": models})
    world.run(job)

    assert world.outcome(job) == world.outcome(undisturbed)


def test_an_adapter_of_a_base_from_the_hub_names_it_and_one_of_a_folder_shows_no_path(
    world: World, training: Rows
) -> None:
    job = world.run(create(world, training))
    model = world.store.models.find(job.model_name)
    assert model is not None
    config = json.loads(get_files(world.storage, model.adapter)["adapter_config.json"])

    assert config["base_model_name_or_path"] == "micro"
    assert BaseModelSettings(path="Qwen/Qwen3-0.6B").reference("qwen") == "Qwen/Qwen3-0.6B"
