"""Two thousand requests and more that nobody would write by hand, to every operation that OpenAI describes.

Whatever is asked: no fault of the server, no wait, a well-formed answer, and nothing told of the machine.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from openai import OpenAI
from schemathesis import GenerationMode

from caesura.settings import Settings
from tests.api.conftest import client, http, http_server
from tests.api.service import KEY, HttpServer, build_service
from tests.contract import description, faults, operations
from tests.contract.world import make_samples

TIMEOUT_S = 10.0
#: Of each operation, for good requests and for bad ones.
NUM_EXAMPLES = 105
NUM_REQUESTS = 2000
#: What would be a path of the machine, or Python's inside.
INSIDE = re.compile(r"Traceback|/site-packages/|/(tmp|home|root)/|\\.py\\b|0x[0-9a-f]{8,}")

__all__ = ["client", "http", "http_server"]


@dataclass(frozen=True)
class Fuzzed:
    http: httpx.Client
    #: Ids of what there is, by what paths call them: a random one all but never is one.
    ids: dict[str, str]


@pytest.fixture(scope="module")
def fuzzed(
    tmp_path_factory: pytest.TempPathFactory, http_server: HttpServer, client: OpenAI, http: httpx.Client
) -> Iterator[Fuzzed]:
    service = build_service(Settings(data_dir=tmp_path_factory.mktemp("fuzz")), http_server, client, http)
    make_samples(service)
    upload = client.uploads.create(bytes=9, filename="t", mime_type="text/plain", purpose="user_data")
    job = next(job for job in client.fine_tuning.jobs.list() if job.fine_tuned_model)
    model = job.fine_tuned_model or ""
    ids = {
        "fine_tuning_job_id": job.id,
        "file_id": job.training_file,
        "model": model,
        "fine_tuned_model_checkpoint": model,
        "upload_id": upload.id,
    }
    yield Fuzzed(http, ids)
    service.close()


@pytest.fixture(scope="module")
def schema() -> Any:
    told = copy.deepcopy(description("relaxed"))
    told.pop("webhooks", None)
    told.pop("security", None)
    return schemathesis.openapi.from_dict(told)


NUM_ASKED = Counter[int]()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("method", "template"), operations("relaxed"), ids=lambda value: value)
def test_no_request_breaks_the_server(fuzzed: Fuzzed, schema: Any, method: str, template: str) -> None:
    operation = schema[template][method.upper()]
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), knows_ids=booleans())
        def check(case: Any, knows_ids: bool) -> None:
            if knows_ids and case.path_parameters:
                case.path_parameters.update({name: fuzzed.ids.get(name, "x") for name in case.path_parameters})
            check_answer(send(case, fuzzed.http), method, template, repr(case)[:1000])

        try:
            check()
        except Unsatisfiable:
            # There is nothing about it that could be wrong: no body, no parameter.
            assert mode is GenerationMode.NEGATIVE, "no good request can be made"


def send(case: Any, http: httpx.Client) -> httpx.Response:
    """As schemathesis would, but by httpx, which knows a time limit for all."""
    request = case.as_transport_kwargs(base_url=f"{str(http.base_url).rstrip('/')}/v1")
    kept = {name: request[name] for name in ("params", "json", "data", "files") if request.get(name) is not None}
    if "files" in kept:
        parts = kept["files"].items() if isinstance(kept["files"], dict) else kept["files"]
        kept["files"] = [(name, _as_part(part)) for name, part in parts]
    if isinstance(kept.get("data"), str | bytes):
        kept["content"] = kept.pop("data")
    headers = {name: str(value) for name, value in (request.get("headers") or {}).items()}
    kept["headers"] = {
        name: value
        for name, value in headers.items()
        if is_sendable(name) and is_sendable(value) and name.lower() not in ("content-length", "transfer-encoding")
    } | {"authorization": f"Bearer {KEY}"}
    return http.request(request["method"], request["url"], timeout=TIMEOUT_S, **kept)


def _as_part(part: Any) -> Any:
    """A form's part, whose value may be of any type."""
    if isinstance(part, tuple):
        name, value, *rest = cast(tuple[Any, ...], part)
        return (name, value if isinstance(value, bytes) else str(value).encode("utf-8", "replace"), *rest)
    return part if isinstance(part, bytes) else str(part).encode("utf-8", "replace")


def is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def check_answer(answer: httpx.Response, method: str, template: str, case: str) -> None:
    NUM_ASKED[answer.status_code] += 1
    told = f"{case}: {answer.status_code} {answer.text[:500]}"
    assert answer.status_code < 500, told
    assert answer.status_code != 422, told
    assert answer.headers["x-request-id"].startswith("req_"), told
    assert not INSIDE.search(answer.text), told
    if answer.status_code >= 400:
        body = answer.json()
        assert body.keys() == {"error"}, told
        assert body["error"].keys() == {"message", "type", "param", "code"}, told
        assert isinstance(body["error"]["message"], str), told
        assert body["error"]["code"] is None or isinstance(body["error"]["code"], str), told
    elif answer.headers["content-type"] == "application/json":
        assert faults("relaxed", method, template, answer.json()) == [], told


def test_so_many_requests_were_sent_and_both_kinds_of_answers_came() -> None:
    """Runs last, in the same process: the group of this module is one."""
    if sum(NUM_ASKED.values()) == 0:
        pytest.skip("the requests were not sent in this run")
    assert sum(NUM_ASKED.values()) >= NUM_REQUESTS, NUM_ASKED
    assert NUM_ASKED[200] > 100, NUM_ASKED
    assert NUM_ASKED[400] > 500, NUM_ASKED
