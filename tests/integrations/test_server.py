"""The whole way: a server as a user starts it, a job that trains, a run at W&B; the server is killed in between."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.integrations.wandb_server import KEY, WandbServer
from tests.serving import Running, Starter
from tests.world import EXAMPLES, wait_until

pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    starter = Starter(tmp_path / "data")
    yield starter
    starter.close()


def open_server(start: Starter, environment: dict[str, str]) -> tuple[Running, OpenAI]:
    server = start(**environment)
    told = server.exported()
    return server, OpenAI(base_url=told["base_url"], api_key=told["api_key"])


def test_a_job_is_one_run_though_its_server_was_killed(
    start: Starter, micro_model: Path, wandb_server: WandbServer
) -> None:
    environment = {
        "CAESURA_WANDB_API_KEY": KEY,
        "CAESURA_WANDB_BASE_URL": wandb_server.url,
        "CAESURA_MODELS": json.dumps({"micro": {"path": str(micro_model)}}),
    }
    server, client = open_server(start, environment)
    file = client.files.create(file=EXAMPLES / "style_train.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="micro",
        training_file=file.id,
        integrations=[{"type": "wandb", "wandb": {"project": "p", "tags": ["whole"]}}],
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    )
    wait_until(lambda: len(wandb_server.steps(job.id)) > 2, "the first steps")
    server.end(signal.SIGKILL)
    server, client = open_server(start, environment)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded", "the job's end")
    wait_until(lambda: wandb_server.runs[job.id].summary.get("status") == "succeeded", "the run's end")

    events = client.get(f"/fine_tuning/jobs/{job.id}/events?limit=1000", cast_to=httpx.Response).json()["data"]
    told = sorted(event["data"]["step"] for event in events if event["type"] == "metrics")
    assert wandb_server.steps(job.id) == told == list(range(1, len(told) + 1))
    assert wandb_server.runs[job.id].told_config("hyperparameters")["batch_size"] == 8
    server.end(signal.SIGTERM)
    assert KEY not in "".join(path.read_text() for path in start.data_dir.parent.glob("server-*.log"))
