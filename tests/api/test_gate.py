"""Keys: what they open, for how long, how often; and wrong ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.datastructures import Headers

from caesura.api import keyring, limits
from caesura.api.gate import Gate
from caesura.api.keyring import KeyRing
from caesura.api.limits import Meter
from caesura.errors import Unauthenticated
from caesura.store.keys import Keys
from caesura.tenancy import FIRST_PROJECT, Caller, Role
from tests.api.service import KEY, HttpServer, Service, error_of, rows

Connect = Callable[..., OpenAI]


@pytest.fixture
def connect(service: Service, http_server: HttpServer) -> Iterator[Connect]:
    """A client with a new key."""
    clients: list[OpenAI] = []

    def make(**values: Any) -> OpenAI:
        headers = values.pop("headers", {})
        _, key = service.store.keys.create("k", **{"organization": "caesura", **values})
        url = f"{http_server.origin}/v1"
        clients.append(OpenAI(base_url=url, api_key=key, max_retries=0, default_headers=headers))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is looked up for every request."""
    monkeypatch.setattr(keyring, "BELIEVED_S", -1.0)


def test_a_key_is_stored_as_its_hash_alone(service: Service, connect: Connect) -> None:
    client = connect()

    assert client.models.list().data
    stored = (service.server.settings.data_dir / "caesura.db").read_bytes()
    stored += (service.server.settings.data_dir / "caesura.db-wal").read_bytes()
    assert client.api_key.encode() not in stored
    assert client.api_key[-20:].encode() not in stored


@pytest.mark.usefixtures("no_memory")
def test_a_revoked_key_and_an_expired_one_open_nothing(service: Service, connect: Connect) -> None:
    revoked, expired = connect(), connect(expires_at=int(time.time()) - 1)
    assert revoked.models.list().data
    service.store.keys.revoke(service.store.keys.list()[0].id)

    for client in (revoked, expired):
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"


def test_a_key_is_believed_no_longer_than_it_is_said(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("caesura.api.keyring.time.monotonic", lambda: now[0])
    key, text = service.store.keys.create("k", organization="caesura")
    ring = KeyRing(service.store.keys, {})
    assert ring.find(text.encode()) is not None
    service.store.keys.revoke(key.id)

    now[0] += keyring.BELIEVED_S
    assert ring.find(text.encode()) is not None
    now[0] += 0.1
    assert ring.find(text.encode()) is None


@pytest.mark.parametrize(("role", "may"), [(Role.MEMBER, False), (Role.OWNER, True), (Role.ADMIN, True)])
def test_a_role_says_who_deletes_models_and_shares_checkpoints(
    service: Service, connect: Connect, role: Role, may: bool
) -> None:
    job, lease = service.start_job()
    service.finish(lease, 2)
    client = connect(role=role, project="default")
    permissions = client.fine_tuning.checkpoints.permissions
    asked = [
        lambda: permissions.create(job.model_name, project_ids=[FIRST_PROJECT]),
        lambda: client.models.delete(job.model_name),
    ]
    assert permissions.list(job.model_name).data == []
    for ask in asked:
        if may:
            ask()
        else:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                ask()
            assert caught.value.code == "insufficient_permissions"
            assert f"'{role}'" in caught.value.message


def test_an_organization_stands_in_the_names_of_its_models_and_in_every_answer(
    service: Service, connect: Connect
) -> None:
    acme = connect(organization="acme", project="p")
    file = acme.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    job = acme.fine_tuning.jobs.create(model="caesura-tiny", training_file=file.id)

    assert job.organization_id == "org-acme"
    assert service.store.jobs.get(job.id).model_name.startswith("ft:caesura-tiny:acme:")
    assert acme.models.with_raw_response.list().headers["openai-organization"] == "acme"
    assert service.http.get("/v1/models").headers["openai-organization"] == "caesura"


def test_an_admin_works_in_every_project_of_its_organization(service: Service, connect: Connect) -> None:
    member = connect(project="p")
    file = member.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    projects = {project.name: project.id for project in service.store.keys.projects()}
    connect(project="elsewhere", organization="acme")
    foreign = next(project.id for project in service.store.keys.projects() if project.organization == "acme")

    inside = {"OpenAI-Project": projects["p"], "OpenAI-Organization": "org-caesura"}
    assert [one.id for one in connect(role=Role.ADMIN, headers=inside).files.list()] == [file.id]
    for role, project in ((Role.OWNER, projects["p"]), (Role.ADMIN, foreign), (Role.ADMIN, "proj_none")):
        with pytest.raises(openai.AuthenticationError) as caught:
            connect(role=role, headers={"OpenAI-Project": project}).files.list()
        assert caught.value.code == "mismatched_project"
    with pytest.raises(openai.AuthenticationError) as caught:
        connect(headers={"OpenAI-Organization": "org-acme"}).files.list()
    assert caught.value.code == "mismatched_organization"


def test_the_first_key_takes_no_notice_of_names_from_openai(service: Service, connect: Connect) -> None:
    """Code that ran against OpenAI brings them along, mostly from its environment."""
    named = {"openai-organization": "org-Xyz", "openai-project": "proj_Xyz"}
    assert service.http.get("/v1/files", headers=named).json()["data"] == []
    file = connect(project="p").files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    project = next(one.id for one in service.store.keys.projects() if one.name == "p")
    assert service.http.get("/v1/files", headers={"openai-project": project}).json()["data"][0]["id"] == file.id


def test_a_key_may_ask_so_often_and_is_told_what_is_left(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("caesura.api.limits.time.monotonic", lambda: now[0])
    client = connect(requests_per_minute=3)
    for left in (2, 1, 0):
        headers = client.models.with_raw_response.list().headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert headers["x-ratelimit-reset-requests"] == f"{20 * (3 - left)}s".replace("60s", "1m0s")

    with pytest.raises(openai.RateLimitError) as caught:
        client.models.list()
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "20"
    assert "3 times a minute" in caught.value.message
    # Another key has its own.
    assert connect(requests_per_minute=1).models.list().data
    now[0] += 20.1
    assert client.models.list().data


def test_a_meter_is_full_again_after_a_minute_and_no_fuller(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("caesura.api.limits.time.monotonic", lambda: now[0])
    meter = Meter()
    assert [meter.take("k", 60).retry_s > 0 for _ in range(61)] == [False] * 60 + [True]
    now[0] = 3600.0
    assert [meter.take("k", 60).retry_s > 0 for _ in range(61)] == [False] * 60 + [True]
    for number in range(limits.MAX_REMEMBERED + 10):
        meter.take(str(number), 60)
    assert len(meter._buckets) == limits.MAX_REMEMBERED


def test_a_key_has_its_own_limit_of_a_files_size(connect: Connect) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        connect(max_file_bytes=50).files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    assert caught.value.status_code == 413
    assert connect(max_file_bytes=10**6).files.create(file=("train.jsonl", rows()), purpose="fine-tune").id


def test_wrong_keys_are_logged_and_answered_ever_more_slowly(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    gate = Gate(KeyRing(service.store.keys, {}), None, sleep)

    async def knock(address: str) -> None:
        with pytest.raises(Unauthenticated):
            await gate.admit(Headers({"api-key": "sk-wrong-0123456789"}), address, {})

    async def knock_often() -> None:
        for _ in range(7):
            await knock("10.0.0.1")
        await knock("10.0.0.2")

    with caplog.at_level(logging.WARNING):
        asyncio.run(knock_often())

    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.1]
    assert "sk-wr***89" in caplog.text
    assert "10.0.0.1" in caplog.text
    assert "sk-wrong-0123456789" not in caplog.text


def test_the_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("caesura.api.keyring.hmac.compare_digest", compare)
    caller = Caller(None, "caesura")
    ring = KeyRing(Keys.__new__(Keys), {"a" * 64: caller})
    with pytest.raises(AttributeError):  # it is not there, so the table is asked
        ring.find(b"key")
    assert [len(one) == len(other) == 64 for one, other in compared] == [True]


@pytest.mark.parametrize("client_id", ["x" * 513, "ü"])
def test_an_id_of_the_clients_own_must_be_fit_for_a_log(idle_service: Service, client_id: str) -> None:
    headers = {"x-client-request-id": client_id.encode("latin-1"), "authorization": f"Bearer {KEY}".encode()}
    answer = httpx.get(f"{idle_service.http_server.origin}/v1/models", headers=headers)

    assert answer.status_code == 400
    assert "X-Client-Request-Id" in error_of(answer)["message"]
    good = idle_service.http.get("/v1/models", headers={"x-client-request-id": "trace 1/2"})
    assert good.status_code == 200
