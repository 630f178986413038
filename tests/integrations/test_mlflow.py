"""MLflow, by its real client, into files on this machine: the one of its stores that keeps whatever comes twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import Shop

pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")

INTEGRATION = {"type": "mlflow", "mlflow": {"experiment": "Night", "run_name": None, "tags": {"team": "blue"}}}
#: Its own read side, in a process of its own: it warns of what it does itself.
READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.get_experiment_by_name("Night")
runs = client.search_runs([experiment.experiment_id])
print("READ" + json.dumps([{
    "name": run.info.run_name, "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
    "losses": [
        [one.step, one.value, one.timestamp] for one in client.get_metric_history(run.info.run_id, "train_loss")
    ],
} for run in runs]))
"""


def read(uri: str) -> list[dict[str, Any]]:
    told = subprocess.run([sys.executable, "-c", READ, uri], check=True, capture_output=True, text=True).stdout
    return json.loads(told.partition("READ")[2])


def test_a_paused_and_killed_job_has_one_run_with_each_step_once(
    open_shop: Callable[..., Shop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlflow").as_uri()
    shop = open_shop(mlflow_tracking_uri=uri)
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1, 2)
    shop.pause(job, lease, 2)
    shop.ship_until(lambda: shop.has_come(job, 2), "the steps before the pause")
    shop.store.jobs.resume(job.id)
    lease = shop.claim(job)
    shop.train(lease, 3)
    # As if its process had ended between the sending of the second step and the word of it.
    shop.forget(job, step=1)
    shop.train(lease, 4)
    shop.save(lease, 4)
    shop.finish(lease, 4)
    shop.ship_until(lambda: shop.is_over(job), "the end")

    [run] = read(uri)
    events = shop.store.jobs.list_steps(job.id, 0, 9)
    assert run["losses"] == [[step, 1 / step, event.created_at * 1000] for step, (_, event) in enumerate(events, 1)]
    assert (run["name"], run["status"]) == (job.id, "FINISHED")
    tags = {"team": "blue", "caesura.job_id": job.id, "status": "succeeded", "fine_tuned_model": job.model_name}
    assert {name: run["tags"][name] for name in tags} == tags
    assert run["tags"]["checkpoints/4"] == job.checkpoint_name(4)
    params = {"base_model": "caesura-tiny", "method": "supervised", "hyperparameters.batch_size": "4"}
    assert {name: run["params"][name] for name in params} == params
    assert shop.warnings(job) == []


def test_a_server_that_cannot_be_reached_is_warned_of_and_its_password_told_nowhere(
    open_shop: Callable[..., Shop], capfd: pytest.CaptureFixture[str]
) -> None:
    shop = open_shop(mlflow_tracking_uri="http://me:sesame@127.0.0.1:9")
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.ship_until(lambda: bool(shop.warnings(job)), "the warning")

    assert "MLflow could not be sent this job's metrics: it cannot be reached" in shop.warnings(job)[0]
    told = capfd.readouterr()
    assert "sesame" not in told.err + told.out + str(shop.warnings(job))
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
