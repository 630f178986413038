from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from caesura.inference.engine import EmbedRequest
from caesura.settings import Settings
from tests.api.service import EngineDouble, HttpServer, Service, assert_shape, build_service, error_of

Build = Callable[[str | None], Service]


@pytest.fixture
def build(tmp_path: Path, http_server: HttpServer, client: OpenAI, http: httpx.Client) -> Iterator[Build]:
    """A server with that embedding model."""
    services: list[Service] = []

    def build(embedding_model: str | None) -> Service:
        settings = Settings(data_dir=tmp_path / "data", embedding_model=embedding_model)
        services.append(build_service(settings, http_server, client, http))
        return services[-1]

    yield build
    for service in services:
        service.close()


def post(service: Service, **extra: Any) -> httpx.Response:
    body = {"model": "caesura-tiny", "input": "four", **extra}
    # As ASCII: what UTF-8 cannot hold is sent too.
    headers = {"content-type": "application/json"}
    return service.http.post("/v1/embeddings", content=json.dumps(body), headers=headers)


def vector(length: int) -> list[float]:
    """The double's embedding of so many characters or tokens."""
    return [math.cos(length / 100), math.sin(length / 100)]


def test_an_answer_is_told_in_openais_form(service: Service, engine: EngineDouble) -> None:
    answer = post(service, input=["four", "seven c"]).json()

    data = {"object": str, "index": int, "embedding": list}
    assert_shape(
        answer, {"object": str, "data": [data], "model": str, "usage": {"prompt_tokens": int, "total_tokens": int}}
    )
    assert answer["data"] == [
        {"object": "embedding", "index": 0, "embedding": vector(4)},
        {"object": "embedding", "index": 1, "embedding": vector(7)},
    ]
    assert (answer["object"], answer["model"]) == ("list", "caesura-tiny")
    assert answer["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert engine.embed_requests == [EmbedRequest(["four", "seven c"], "caesura-tiny", None)]


@pytest.mark.parametrize("extra", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_sdk_reads_numbers_however_they_are_sent(service: Service, extra: dict[str, Any]) -> None:
    answer = service.client.embeddings.create(model="caesura-tiny", input="four", **extra)

    embedding: Any = answer.data[0].embedding
    if extra.get("encoding_format") == "base64":
        embedding = struct.unpack("<2f", base64.b64decode(embedding))
    assert list(embedding) == pytest.approx(vector(4), rel=1e-6)


def test_base64_holds_float32_with_the_lowest_byte_first(service: Service) -> None:
    (data,) = post(service, encoding_format="base64").json()["data"]

    assert base64.b64decode(data["embedding"]) == struct.pack("<f", vector(4)[0]) + struct.pack("<f", vector(4)[1])


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a"] * 2048, ["a"] * 2048),
    ],
)
def test_texts_and_tokens_reach_the_engine(service: Service, engine: EngineDouble, given: Any, asked: Any) -> None:
    answer = service.client.embeddings.create(model="caesura-tiny", input=given)

    assert engine.embed_requests[0].inputs == asked
    assert [data.index for data in answer.data] == list(range(len(asked)))


def test_a_tuned_model_embeds_with_its_adapter(service: Service, engine: EngineDouble) -> None:
    job, lease = service.start_job()
    service.finish(lease, 2)
    answer = service.client.embeddings.create(model=job.model_name, input="a")

    model = service.store.models.find(job.model_name)
    assert model is not None
    assert answer.model == job.model_name
    assert engine.embed_requests == [EmbedRequest(["a"], "caesura-tiny", model.adapter)]


NAMES = ["text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"]


@pytest.mark.parametrize("name", [*NAMES, "gpt-4o-mini"])
def test_openais_names_mean_the_embedded_base_where_there_is_no_embedding_model(build: Build, name: str) -> None:
    service = build(None)
    answer = service.client.embeddings.create(model=name, input="a")

    assert answer.model == "caesura-tiny"
    assert service.engine.embed_requests == [EmbedRequest(["a"], "caesura-tiny", None)]


@pytest.mark.parametrize("name", [*NAMES, "some/encoder"])
def test_the_embedding_model_answers_to_openais_names_and_its_own(build: Build, name: str) -> None:
    service = build("some/encoder")
    answer = service.client.embeddings.create(model=name, input="a")

    assert answer.model == "some/encoder"
    assert service.engine.embed_requests == [EmbedRequest(["a"])]


def test_an_embedding_model_in_a_folder_goes_by_the_folders_name(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    service = build(str(folder))

    for name in (str(folder), "my-encoder", NAMES[0]):
        assert service.client.embeddings.create(model=name, input="a").model == "my-encoder"
    assert service.engine.embed_requests == [EmbedRequest(["a"])] * 3


def test_a_base_is_asked_by_its_name_also_beside_an_embedding_model(build: Build) -> None:
    service = build("some/encoder")
    service.client.embeddings.create(model="caesura-tiny", input="a")

    assert service.engine.embed_requests == [EmbedRequest(["a"], "caesura-tiny", None)]


@pytest.mark.parametrize("name", ["text-embedding-4", "some/encoder"])
def test_an_unknown_model_is_not_found(build: Build, name: str) -> None:
    service = build(None)
    with pytest.raises(openai.NotFoundError) as caught:
        service.client.embeddings.create(model=name, input="a")

    assert caught.value.code == "model_not_found"
    assert f"The model `{name}` does not exist" in caught.value.message


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_fewer_dimensions_are_the_first_of_them_at_unit_length(service: Service, encoding: str) -> None:
    (data,) = post(service, dimensions=1, encoding_format=encoding).json()["data"]

    shortened = data["embedding"]
    if encoding == "base64":
        shortened = list(struct.unpack("<f", base64.b64decode(shortened)))
    assert shortened == [1.0]


def test_zeros_stay_zeros(service: Service, engine: EngineDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "cos", lambda _angle: 0.0)
    (data,) = post(service, dimensions=1).json()["data"]

    assert data["embedding"] == [0.0]


def test_all_dimensions_may_be_asked_for_and_no_more(service: Service) -> None:
    assert post(service, dimensions=2).json()["data"][0]["embedding"] == pytest.approx(vector(4))
    answer = post(service, dimensions=3)

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("dimensions", "integer_above_max_value")
    assert "Expected a value <= 2, the size of the embeddings of 'caesura-tiny', but got 3" in error["message"]


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "string_below_min_length"),
        ({"input": []}, "input", "empty_array"),
        ({"input": ["a", ""]}, "input[1]", "string_below_min_length"),
        ({"input": [[1], []]}, "input[1]", "empty_array"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": [-1]}, "input[0]", "integer_below_min_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": "\ud800"}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
        ({"input": [[1]] * 2049}, "input", "array_above_max_length"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
    ],
)
def test_a_faulty_body_is_a_400_that_names_the_parameter(
    idle_service: Service, extra: dict[str, Any], param: str, code: str
) -> None:
    answer = post(idle_service, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"] or code == "invalid_value"
    assert idle_service.engine.embed_requests == []
