"""Every address under which clients of OpenAI and of Azure look for the API."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import AzureOpenAI, OpenAI

from caesura.api.addresses import Address, resolve
from tests.api.service import KEY, Service, error_of, rows

PREFIXES = ("/v1", "/openai/v1", "/openai")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/v1/models", Address("/v1/models")),
        ("/v1/models/", Address("/v1/models")),
        ("/", Address("/")),
        ("/openai/v1/files", Address("/v1/files", is_azure=True)),
        ("/openai/files/", Address("/v1/files", is_azure=True)),
        ("/openai", Address("/v1", is_azure=True)),
        ("/openaix/files", Address("/openaix/files")),
        ("/v1/openai/files", Address("/v1/openai/files")),
        ("/openai/deployments/m/chat/completions", Address("/v1/chat/completions", True, "m")),
        ("/openai/v1/deployments/m/completions", Address("/v1/completions", True, "m")),
        ("/openai/deployments/ft:a:b::c/embeddings", Address("/v1/embeddings", True, "ft:a:b::c")),
        (
            "/openai/deployments/Qwen/Qwen3-0.6B/chat/completions",
            Address("/v1/chat/completions", True, "Qwen/Qwen3-0.6B"),
        ),
        ("/openai/deployments/a/completions/completions", Address("/v1/completions", True, "a/completions")),
        ("/openai/deployments//completions", Address("/v1/deployments//completions", True)),
        ("/openai/deployments/m/images/generations", Address("/v1/deployments/m/images/generations", True)),
    ],
)
def test_an_address_leads_to_an_endpoint(path: str, address: Address) -> None:
    assert resolve(path) == address


def test_an_azure_client_does_all_that_openais_does(service: Service) -> None:
    azure = AzureOpenAI(azure_endpoint=service.http_server.origin, api_key=KEY, api_version="2024-10-21", max_retries=0)
    file = azure.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    assert file.status == "pending"
    assert azure.files.retrieve(file.id).status == "processed"
    job = azure.fine_tuning.jobs.create(
        model="caesura-tiny", training_file=file.id, extra_body={"trainingType": "developerTier", "who": "knows"}
    )
    assert job.model_extra is not None
    assert job.model_extra["trainingType"] == "developerTier"
    assert [one.id for one in azure.fine_tuning.jobs.list()] == [job.id]
    assert service.client.fine_tuning.jobs.retrieve(job.id).id == job.id
    answer = azure.chat.completions.create(model="caesura-tiny", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == "Hello world"
    assert azure.models.retrieve("caesura-tiny").id == "caesura-tiny"


@pytest.mark.parametrize("api_version", ["v1", "preview", "2025-04-01-preview", None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_prefix_answers_with_either_header_and_any_version(
    idle_service: Service, prefix: str, api_version: str | None
) -> None:
    query = {} if api_version is None else {"api-version": api_version}
    for headers in ({"api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        answer = httpx.get(f"{idle_service.http_server.origin}{prefix}/models", headers=headers, params=query)

        assert answer.status_code == 200
        assert ("apim-request-id" in answer.headers) == (prefix != "/v1")


def test_an_unknown_url_is_told_as_it_was_asked_for(idle_service: Service) -> None:
    for path in ("/v1/foo", "/openai/foo", "/openai/v1/deployments/m/foo", "/openai"):
        assert error_of(idle_service.http.get(path))["message"] == f"Invalid URL (GET {path})"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"model": "another", "messages": [{"role": "user", "content": 'a } "model": "b"'}]},
    ],
)
def test_the_deployment_is_the_model_whatever_the_body_says(service: Service, body: dict[str, Any]) -> None:
    path = "/openai/deployments/caesura-tiny/chat/completions"
    answer = service.http.post(path, content=f" {json.dumps(body)}\n", headers={"content-type": "application/json"})

    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "caesura-tiny"
    assert service.engine.requests[-1].messages == body["messages"]


@pytest.mark.parametrize(("body", "param"), [("{}", "messages"), ("[]", None), ("{", None), ("", None)])
def test_a_faulty_body_to_a_deployment_is_told(idle_service: Service, body: str, param: str | None) -> None:
    path = "/openai/deployments/caesura-tiny/chat/completions"
    answer = idle_service.http.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert param is None or error_of(answer)["param"] == param


def test_a_tuned_model_and_a_hubs_name_may_be_deployments(service: Service) -> None:
    job, lease = service.start_job()
    service.finish(lease, 2)
    azure = AzureOpenAI(azure_endpoint=service.http_server.origin, api_key=KEY, api_version="v1", max_retries=0)

    messages: Any = [{"role": "user", "content": "Hi"}]
    assert azure.chat.completions.create(model=job.model_name, messages=messages).model == job.model_name
    with pytest.raises(openai.NotFoundError, match=r"`Qwen/Qwen3-0\.6B`"):
        azure.chat.completions.create(model="Qwen/Qwen3-0.6B", messages=messages)


def test_keys_that_are_not_known_are_a_fault_under_openais_prefix_alone(service: Service) -> None:
    body = {"model": "caesura-tiny", "training_file": service.upload(), "sped": 1, "method": None}

    refused = service.http.post("/v1/fine_tuning/jobs", json=body)
    assert error_of(refused)["code"] == "unknown_parameter"
    assert service.http.post("/openai/v1/fine_tuning/jobs", json=body).status_code == 200
    nested = body | {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 1}}}}
    assert service.http.post("/openai/fine_tuning/jobs", json=nested).status_code == 200
    # What one request may leave out does not open the next.
    assert service.http.post("/v1/fine_tuning/jobs", json=body).status_code == 400


def test_an_ended_job_can_be_deleted_and_paged_past(service: Service) -> None:
    azure = f"{service.http_server.origin}/openai/v1"
    ids = [service.create_job() for _ in range(3)]
    running = service.http.delete(f"/openai/fine_tuning/jobs/{ids[1]}")
    assert running.status_code == 400
    assert error_of(running)["code"] == "invalid_job_state"
    assert running.headers["x-should-retry"] == "false"
    service.client.fine_tuning.jobs.cancel(ids[1])

    deleted = service.http.delete(f"/openai/fine_tuning/jobs/{ids[1]}")

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert service.http.delete(f"/openai/fine_tuning/jobs/{ids[1]}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        service.client.fine_tuning.jobs.retrieve(ids[1])
    with pytest.raises(openai.NotFoundError):
        service.client.fine_tuning.jobs.list_events(ids[1])
    client = OpenAI(base_url=azure, api_key=KEY, max_retries=0)
    assert [job.id for job in client.fine_tuning.jobs.list()] == [ids[2], ids[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(after=ids[1])] == [ids[0]]
