"""Two projects on one server: what is one's does not exist for the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from caesura.inference.engine import Finished, Text
from caesura.tenancy import Role
from tests.api.service import HttpServer, Service, error_of

#: What a route's other parameters are, where a wrong body would be told before the missing object.
BODIES: dict[str, Any] = {
    "POST /v1/dashboard/webhook_endpoints/{endpoint_id}": {},
    "POST /v1/uploads/{upload_id}/complete": {"part_ids": ["part_x"]},
    "POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions": {"project_ids": ["proj_default"]},
}


@dataclass
class Owned:
    """One of everything, in the first project."""

    #: By the name that routes give it.
    ids: dict[str, str]
    #: Every id and name by which something of it could be told.
    secrets: set[str]


@pytest.fixture
def stranger(service: Service, http_server: HttpServer) -> Iterator[OpenAI]:
    """The key of an owner, of another project of the same organization."""
    _, key = service.store.keys.create("theirs", organization="caesura", project="theirs", role=Role.OWNER)
    with OpenAI(base_url=f"{http_server.origin}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
def owned(service: Service) -> Owned:
    job, lease = service.start_job(suffix="mine", metadata={"whose": "mine"})
    service.train(lease, 1)
    service.save(lease, 1)
    service.finish(lease, 2)
    checkpoint = service.client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    done = service.client.fine_tuning.jobs.retrieve(job.id)
    other, _ = service.store.keys.create("third", organization="caesura", project="third")
    permissions = service.client.fine_tuning.checkpoints.permissions
    permission = next(iter(permissions.create(job.model_name, project_ids=[other.project])))
    service.engine.pieces = [Text("Hello"), Finished("stop", 5, 2)]
    response = service.client.responses.create(model=job.model_name, input="Hi")
    upload = service.client.uploads.create(bytes=9, filename="t.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    hook = service.http.post(
        "/v1/dashboard/webhook_endpoints",
        json={"name": "n", "url": "https://example.com/h", "event_types": ["fine_tuning.job.failed"]},
    ).json()
    ids = {
        "endpoint_id": hook["id"],
        "upload_id": upload.id,
        "job_id": job.id,
        "file_id": job.training_file,
        "name": job.model_name,
        "checkpoint": job.model_name,
        "permission_id": permission.id,
        "response_id": response.id,
    }
    secrets = {*ids.values(), checkpoint.id, checkpoint.fine_tuned_model_checkpoint, *done.result_files}
    return Owned(ids, secrets)


def routes(service: Service) -> list[tuple[str, str]]:
    paths: dict[str, Any] = service.app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods if path.startswith("/v1")]


def test_no_route_tells_another_project_of_anything(service: Service, owned: Owned, stranger: OpenAI) -> None:
    num_asked = 0
    for method, path in routes(service):
        names = re.findall(r"{(\w+)}", path)
        if not names:
            continue
        unknown = set(names) - owned.ids.keys()
        assert not unknown, f"{method} {path}: this test has no {unknown} of its own"
        num_asked += 1
        url = service.http_server.origin + path.format_map(owned.ids)
        body = BODIES.get(f"{method} {path}")
        answer = httpx.request(method, url, headers={"authorization": f"Bearer {stranger.api_key}"}, json=body)

        assert answer.status_code == 404, (method, path, answer.text)
        message = error_of(answer)["message"]
        assert not {secret for secret in owned.secrets - set(owned.ids.values()) if secret in message}
    assert num_asked >= 17


def test_no_list_of_another_project_holds_anything(service: Service, owned: Owned, stranger: OpenAI) -> None:
    num_lists = 0
    for method, path in routes(service):
        if method != "GET" or "{" in path:
            continue
        num_lists += 1
        answer = httpx.get(service.http_server.origin + path, headers={"authorization": f"Bearer {stranger.api_key}"})

        assert answer.status_code == 200, path
        assert not [secret for secret in owned.secrets if secret in answer.text]
        mine = service.http.get(path)
        assert any(secret in mine.text for secret in owned.secrets), path
    assert num_lists >= 3


def test_what_is_named_in_a_body_is_not_there_either(service: Service, owned: Owned, stranger: OpenAI) -> None:
    model, file = owned.ids["name"], owned.ids["file_id"]
    own = stranger.files.create(file=("t.jsonl", b'{"messages": []}\n'), purpose="fine-tune").id

    with pytest.raises(openai.BadRequestError, match="invalid training_file"):
        stranger.fine_tuning.jobs.create(model="caesura-tiny", training_file=file)
    with pytest.raises(openai.BadRequestError) as caught:
        stranger.fine_tuning.jobs.create(model=model, training_file=own)
    assert caught.value.code == "model_not_available"
    messages: Any = [{"role": "user", "content": "Hi"}]
    for ask in (
        lambda: stranger.chat.completions.create(model=model, messages=messages),
        lambda: stranger.completions.create(model=model, prompt="Hi"),
        lambda: stranger.responses.create(model=model, input="Hi"),
        lambda: stranger.embeddings.create(model=model, input="Hi"),
        lambda: stranger.responses.create(
            model="caesura-tiny", input="Hi", previous_response_id=owned.ids["response_id"]
        ),
    ):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as refused:
            ask()
        assert refused.value.code in ("model_not_found", "previous_response_not_found", "model_not_available")
    grader: Any = {"type": "score_model", "name": "g", "model": model, "input": messages}
    with pytest.raises(openai.BadRequestError, match="model"):
        stranger.fine_tuning.alpha.graders.validate(grader=grader)
    for after in (owned.ids["job_id"],):
        with pytest.raises(openai.BadRequestError, match="after"):
            stranger.fine_tuning.jobs.list(after=after)
    with pytest.raises(openai.BadRequestError, match="after"):
        stranger.files.list(after=file)


def test_a_permission_opens_a_checkpoint_to_another_project_until_it_is_deleted(
    service: Service, owned: Owned, stranger: OpenAI
) -> None:
    model = owned.ids["name"]
    project = next(key.project for key in service.store.keys.list() if key.name == "theirs")
    made = service.client.fine_tuning.checkpoints.permissions.with_raw_response.create(model, project_ids=[project])
    permission = made.http_response.json()["data"][0]
    again = service.client.fine_tuning.checkpoints.permissions.create(model, project_ids=[project])

    assert [one.id for one in again] == [permission["id"]]
    messages: Any = [{"role": "user", "content": "Hi"}]
    assert stranger.chat.completions.create(model=model, messages=messages).choices[0].message.content == "Hello"
    assert stranger.models.retrieve(model).id == model
    own = stranger.files.create(file=("t.jsonl", b'{"messages": []}\n'), purpose="fine-tune").id
    assert stranger.fine_tuning.jobs.create(model=model, training_file=own).model == model
    # It may be used, not owned.
    with pytest.raises(openai.NotFoundError):
        stranger.get(f"/models/{model}/export", cast_to=openai.HttpxBinaryResponseContent)
    with pytest.raises(openai.NotFoundError):
        stranger.models.delete(model)
    with pytest.raises(openai.NotFoundError):
        stranger.fine_tuning.checkpoints.permissions.create(model, project_ids=[project])

    service.client.fine_tuning.checkpoints.permissions.delete(permission["id"], fine_tuned_model_checkpoint=model)
    with pytest.raises(openai.NotFoundError):
        stranger.chat.completions.create(model=model, messages=messages)


def test_a_grader_asks_a_model_in_the_project_of_its_caller(service: Service, owned: Owned) -> None:
    service.engine.pieces = [Text('{"steps": [], "result": 0.5}'), Finished("stop", 5, 2)]
    grader: Any = {
        "type": "score_model",
        "name": "g",
        "model": owned.ids["name"],
        "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    }
    _, key = service.store.keys.create("mine", organization="caesura", project="default")
    client = OpenAI(base_url=f"{service.http_server.origin}/v1", api_key=key, max_retries=0)

    graded = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x")

    assert graded.reward == 0.5, graded
