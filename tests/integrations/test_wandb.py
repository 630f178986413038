"""Weights & Biases, by its real client, against a server on this machine that stands in for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caesura.jobs import Status
from tests.integrations.conftest import Shop, wandb
from tests.integrations.wandb_server import KEY, WandbServer

pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")


def test_a_run_has_each_step_once_what_the_job_is_made_of_and_what_came_of_it(
    wandb_shop: Shop, wandb_server: WandbServer
) -> None:
    job, lease = wandb_shop.start_job(wandb(tags=["mine"]))
    wandb_shop.train(lease, 1, 2, 3)
    wandb_shop.save(lease, 3)
    wandb_shop.ship_until(lambda: wandb_server.steps(job.id) == [1, 2, 3], "the first steps, while the job runs")
    assert wandb_server.runs[job.id].exit_codes == []
    wandb_shop.train(lease, 4)
    wandb_shop.finish(lease, 4)
    wandb_shop.ship_until(lambda: wandb_shop.is_over(job), "the end")

    run = wandb_server.runs[job.id]
    assert (run.id, run.name, run.project, list(wandb_server.runs)) == (job.id, job.id, "p", [job.id])
    assert run.tags == ["openai/finetune", "openai/caesura-tiny", f"openai/{job.id}", "mine"]
    assert run.steps == [1, 2, 3, 4]
    assert [line["train_loss"] for line in run.history] == [1, 1 / 2, 1 / 3, 1 / 4]
    events = wandb_shop.store.jobs.list_steps(job.id, 0, 9)
    assert [line["_timestamp"] for line in run.history] == [event.created_at for _, event in events]
    assert run.told_config("hyperparameters") == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
    asked = {"base_model": "caesura-tiny", "method": "supervised", "training_file": "file-training", "seed": 7}
    assert {name: run.told_config(name) for name in asked} == asked
    told = {"status": "succeeded", "fine_tuned_model": job.model_name, "trained_tokens": 1234}
    assert {name: run.summary[name] for name in told} == told
    assert run.summary["checkpoints/3"] == job.checkpoint_name(3)
    assert run.exit_codes == [0]
    assert wandb_shop.warnings(job) == []


def test_a_job_that_was_paused_goes_on_in_the_same_run(wandb_shop: Shop, wandb_server: WandbServer) -> None:
    job, lease = wandb_shop.start_job(wandb(name="Night run", entity="others"))
    wandb_shop.train(lease, 1, 2)
    wandb_shop.pause(job, lease, 2)
    wandb_shop.ship_until(lambda: wandb_shop.has_come(job, 2), "the steps before the pause")
    assert (wandb_server.steps(job.id), wandb_server.runs[job.id].summary["status"]) == ([1, 2], "paused")

    wandb_shop.store.jobs.resume(job.id)
    lease = wandb_shop.claim(job)
    wandb_shop.train(lease, 1, 2, 3)  # an attempt that begins again from an older state tells what was told
    wandb_shop.finish(lease, 3)
    wandb_shop.ship_until(lambda: wandb_shop.is_over(job), "the end")

    run = wandb_server.runs[job.id]
    assert (list(wandb_server.runs), run.name, run.entity) == ([job.id], "Night run", "others")
    assert (run.steps, run.summary["status"], wandb_server.inits) == ([1, 2, 3], "succeeded", [job.id, job.id])


def test_after_its_server_was_killed_the_next_one_goes_on_and_no_step_is_lost_or_there_twice(
    wandb_shop: Shop, wandb_server: WandbServer
) -> None:
    job, lease = wandb_shop.start_job(wandb())
    wandb_shop.train(lease, 1, 2)
    wandb_shop.ship_until(lambda: wandb_server.steps(job.id) == [1, 2], "the first steps")
    wandb_shop.train(lease, 3)
    wandb_shop.kill_server()
    wandb_shop.train(lease, 4)
    wandb_shop.finish(lease, 4)
    wandb_shop.ship_until(lambda: wandb_shop.is_over(job), "the end")

    assert wandb_server.steps(job.id) == [1, 2, 3, 4]
    assert wandb_server.runs[job.id].summary["status"] == "succeeded"


def test_while_it_cannot_be_reached_the_job_goes_on_with_one_warning_and_then_all_comes(
    wandb_shop: Shop, wandb_server: WandbServer
) -> None:
    wandb_server.stop()
    job, lease = wandb_shop.start_job(wandb())
    wandb_shop.train(lease, 1, 2)
    wandb_shop.ship_until(lambda: wandb_shop.rows(job)[0]["num_tries"] == 1, "the first try")
    wandb_shop.train(lease, 3)
    wandb_shop.make_due()
    wandb_shop.ship_until(lambda: wandb_shop.rows(job)[0]["num_tries"] == 2, "the second try")
    assert wandb_shop.store.jobs.get(job.id).status is Status.RUNNING
    assert wandb_shop.warnings(job) == [
        "Weights & Biases could not be sent this job's metrics: it cannot be reached. The job goes on; they are kept, "
        "and sent as soon as they can be"
    ]
    wandb_server.start()
    wandb_shop.finish(lease, 3)
    wandb_shop.make_due()
    wandb_shop.ship_until(lambda: wandb_shop.is_over(job), "the end")

    assert wandb_server.steps(job.id) == [1, 2, 3]
    assert len(wandb_shop.warnings(job)) == 1


def test_one_that_goes_away_in_the_middle_and_comes_back_has_each_step_once(
    wandb_shop: Shop, wandb_server: WandbServer
) -> None:
    job, lease = wandb_shop.start_job(wandb())
    wandb_shop.train(lease, 1, 2)
    wandb_shop.ship_until(lambda: wandb_shop.rows(job)[0]["step"] == 2, "the first steps")
    wandb_server.stop()
    wandb_shop.train(lease, 3, 4)
    wandb_shop.ship_until(lambda: len(wandb_shop.warnings(job)) == 1, "that it is missed")
    wandb_server.start()
    wandb_shop.train(lease, 5)
    wandb_shop.store.jobs.cancel(job.id)
    wandb_shop.make_due()
    wandb_shop.ship_until(lambda: wandb_shop.is_over(job), "the end")

    run = wandb_server.runs[job.id]
    assert (run.steps, run.exit_codes, run.summary["status"]) == ([1, 2, 3, 4, 5], [1], "cancelled")


def test_the_key_is_in_no_answer_no_event_no_log_no_file_and_no_process_table(
    wandb_shop: Shop, wandb_server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    job, lease = wandb_shop.start_job(wandb())
    wandb_shop.train(lease, 1)
    wandb_shop.ship_until(lambda: wandb_server.steps(job.id) == [1], "the first step")
    for pid in wandb_shop.pids():
        for name in ("cmdline", "environ"):
            assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    wandb_server.key = "another one now"
    wandb_shop.train(lease, 2)
    wandb_shop.kill_server()
    wandb_shop.ship_until(lambda: "does not take" in str(wandb_shop.warnings(job)), "the refusal")

    written = [path.read_bytes() for path in wandb_shop.settings.data_dir.rglob("*") if path.is_file()]
    assert written
    assert not [data for data in written if KEY.encode() in data]
    told = capfd.readouterr()
    assert "does not take the server's key" in told.err
    assert KEY not in told.err + told.out + str(wandb_shop.warnings(job))


def test_offline_each_opening_is_a_folder_and_wandb_sync_makes_one_run_of_them(
    open_shop: Callable[..., Shop], wandb_server: WandbServer
) -> None:
    shop = open_shop(wandb_mode="offline")
    job, lease = shop.start_job(wandb())
    shop.train(lease, 1, 2)
    shop.pause(job, lease, 2)
    shop.ship_until(lambda: shop.has_come(job, 2), "the steps before the pause")
    shop.store.jobs.resume(job.id)
    lease = shop.claim(job)
    shop.train(lease, 3)
    begun = shop.settings.data_dir / "wandb" / f".{job.id}-0"
    shop.ship_until(
        lambda: any(b"train_loss" in path.read_bytes() for path in begun.rglob("*.wandb")), "the third step"
    )
    shop.kill_server()  # what it had begun does not count
    shop.train(lease, 4)
    shop.finish(lease, 4)
    shop.ship_until(lambda: shop.is_over(job), "the end")

    folder = shop.settings.data_dir / "wandb" / f"{job.id}-0"
    assert sorted(path.name for path in folder.iterdir()) == ["from-step-1", "from-step-3"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert wandb_server.runs == {}
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": wandb_server.url}
    runs = list(folder.glob("*/offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)  # it leaves logs there
    assert wandb_server.runs[job.id].summary["status"] == "succeeded"
    assert wandb_server.steps(job.id) == [1, 2, 3, 4]
