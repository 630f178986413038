"""What a worker's grader works with: the server's own models, wherever that server is now, and tools over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from caesura.access import ACCESS_FILE, grant_access
from caesura.graders.grade import observe_text
from caesura.jobs import Job
from caesura.training import grading
from caesura.worker.grader import OwnServer, open_grading, open_tool_servers
from tests.graders.judge_server import Answer, JudgeServer, completion
from tests.worker.disturb import Rows, to_prompts
from tests.world import World

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "caesura-tiny",
    "input": [{"role": "user", "content": "Is {{ sample.output_text }} right?"}],
}


def verdict(result: float) -> Answer:
    return Answer(completion({"steps": [], "result": result}))


@pytest.fixture
def job(world: World, training: Rows) -> Job:
    return world.create_job(to_prompts(training), method="reinforcement", body={"grader": JUDGE})


def test_a_judge_that_is_a_model_of_this_server_is_asked_by_its_workers_key(world: World, job: Job) -> None:
    with (
        JudgeServer(verdict(0.75)) as server,
        open_grading(job, world.settings, world.store, print) as running,
    ):
        grant_access(world.settings.data_dir, "127.0.0.1", server.port, "the-workers-key")

        assert running.submit(observe_text("42", {})).result(60).reward == 0.75
        (request,) = server.requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == "Bearer the-workers-key"


def test_a_server_that_is_away_is_waited_for_and_the_next_one_is_found(
    world: World, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "RETRY_S", (0.01, 0.01))
    monkeypatch.setattr("caesura.graders.calls.MIN_BACKOFF_S", 0.001)
    told: list[str] = []
    with JudgeServer(verdict(0.25)) as server:
        with open_grading(job, world.settings, world.store, told.append) as running:
            first = running.submit(observe_text("42", {}))
            while not told:
                assert not first.done()
            # A server that was killed leaves its file behind.
            with JudgeServer(verdict(1.0)) as gone:
                port = gone.port
            grant_access(world.settings.data_dir, "127.0.0.1", port, "old")
            second = running.submit(observe_text("43", {}))
            grant_access(world.settings.data_dir, "127.0.0.1", server.port, "new")

            assert first.result(60).reward == second.result(60).reward == 0.25
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer new"}
    assert len(told) == 1
    assert "no connection to it could be made" in told[0]


def test_without_a_server_a_request_says_that_there_is_none(tmp_path: Path) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(transport=OwnServer(tmp_path), base_url="http://own/v1") as client:
            await client.get("/models")

    with pytest.raises(httpx.ConnectError, match="not running"):
        asyncio.run(ask())
    assert not (tmp_path / ACCESS_FILE).exists()


@pytest.mark.parametrize(
    "tools", [[], [{"name": "f", "server_url": "https://tools.example.com/f"}]], ids=["none", "one"]
)
def test_a_job_has_tool_servers_where_it_names_some(world: World, job: Job, tools: list[dict[str, Any]]) -> None:
    job.method["reinforcement"].update({"tools": tools} if tools else {})
    with (
        open_grading(job, world.settings, world.store, print) as running,
        open_tool_servers(job, world.settings, running) as servers,
    ):
        assert (servers is not None) == bool(tools)
