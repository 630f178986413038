"""Two servers over one PostgreSQL database and one folder, asked by turns as if they were one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from caesura.settings import Settings
from tests.api.service import KEY, HttpServer, Service, build_service, rows
from tests.postgres import PostgresServer


@dataclass(frozen=True)
class Pair:
    a: Service
    b: Service


@pytest.fixture
def pair(tmp_path: Path, postgres: PostgresServer) -> Iterator[Pair]:
    settings = Settings(data_dir=tmp_path / "data", database_url=postgres.new_database())
    services: list[Service] = []
    with ExitStack() as opened:
        for _ in range(2):
            server = HttpServer()
            opened.callback(server.close)
            client = opened.enter_context(OpenAI(base_url=f"{server.origin}/v1", api_key=KEY, max_retries=0))
            headers = {"authorization": f"Bearer {KEY}"}
            http = opened.enter_context(httpx.Client(base_url=server.origin, headers=headers, timeout=30))
            services.append(build_service(settings, server, client, http))
            opened.callback(services[-1].close)
        yield Pair(*services)


def test_what_one_server_is_given_the_other_has(pair: Pair) -> None:
    file = pair.a.client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
    assert pair.b.client.files.content(file.id).read() == rows()

    job = pair.b.client.fine_tuning.jobs.create(
        model="caesura-tiny", training_file=file.id, metadata={"part": "second"}
    )
    assert pair.a.client.fine_tuning.jobs.retrieve(job.id) == job
    assert [one.id for one in pair.a.client.fine_tuning.jobs.list(metadata={"part": "second"})] == [job.id]

    assert pair.a.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="'cancelled'"):
        pair.b.client.fine_tuning.jobs.pause(job.id)
    assert pair.a.messages(job.id) == pair.b.messages(job.id)
    pair.b.client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        pair.a.client.files.retrieve(file.id)


def test_a_job_is_validated_by_either_and_launched_by_one(pair: Pair) -> None:
    file = pair.a.client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
    job = pair.a.client.fine_tuning.jobs.create(model="caesura-tiny", training_file=file.id)

    for service in (pair.b, pair.a, pair.b):
        service.server.scheduler.tick()
    launched = pair.a.executor.started + pair.b.executor.started

    assert pair.a.client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    assert launched == [job.id]
    claims = [service.server.store.attempts.claim(job.id, "worker", 60.0) for service in (pair.a, pair.b)]
    assert [claim is None for claim in claims] == [False, True]


def test_pages_go_on_at_the_other_server(pair: Pair) -> None:
    made = [pair.a.client.files.create(file=(f"{number}.jsonl", rows()), purpose="fine-tune").id for number in range(7)]

    first = pair.a.client.files.list(limit=3, order="asc")
    second = pair.b.client.files.list(limit=3, order="asc", after=first.data[-1].id)

    assert [file.id for file in (*first.data, *second.data)] == made[:6]


def test_a_request_that_is_sent_again_to_the_other_server_is_answered_as_the_first(pair: Pair) -> None:
    file = pair.a.client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
    body = {"model": "caesura-tiny", "training_file": file.id}
    headers = {"idempotency-key": "one"}
    first, second = (
        service.http.post("/v1/fine_tuning/jobs", headers=headers, json=body) for service in (pair.a, pair.b)
    )

    assert (first.status_code, second.status_code) == (200, 200)
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(pair.b.client.fine_tuning.jobs.list().data) == 1


def test_a_key_that_was_made_or_revoked_at_one_is_known_at_the_other(pair: Pair) -> None:
    key, text = pair.a.server.store.keys.create("ci", organization="caesura")
    asking = {"authorization": f"Bearer {text}"}
    assert pair.b.http.get("/v1/files", headers=asking).status_code == 200

    pair.b.server.store.keys.revoke(key.id)
    assert pair.a.http.get("/v1/files", headers=asking).status_code == 401
